"""One draw of one row: what a rollout begins with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

REASONING_GYM, VERIFIERS = MADE = ("reasoning_gym:", "verifiers:")
"""What `data.path` begins with where a package makes the rows; the second, `env` too."""

DATA = "data"
"""`rollout.engine` where nothing is sampled, as the rows have the answers."""

Message = dict[str, Any]
"""Of a chat: role, content, and what else a chat template knows."""


@dataclass(frozen=True)
class Task:
    """One draw of one row."""

    number: int
    """Sample index: 0, 1, 2, … over all epochs."""
    row_index: int
    prompt: str | list[Message]
    """Text, or chat messages for the model's chat template."""
    row: dict[str, Any]
    """All columns."""
    tools: list[dict[str, Any]] | None = None
    """For the chat template."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further variables of the chat template."""
    where: str = "the prompt"
    """Where the prompt is from, for people: file and line, or number of the row; and column."""
    epoch: float = 0.0
    """Passes over the data at this draw."""
    source: str = ""
    """Name of the data source, where the recipe has several."""
    answers: tuple[str | list[Message], ...] = ()
    """What follows the prompt, of a row that has it: a demonstration; or the chosen and the rejected. Text, or
    messages, of which the assistant's are to be learnt."""

    @property
    def messages(self) -> list[Message]:
        """The prompt as a chat, a copy: a text is the user's."""
        return [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else [*map(dict, self.prompt)]


def asked(prompt: str | list[Message]) -> str:
    """A prompt in short, for people: the text, or the last message's."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def decoded_call(call: Any) -> Any:
    """A tool call with its arguments as an object: OpenAI's form has them as JSON, which templates would put into
    quotes once more."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function
