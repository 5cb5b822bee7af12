"""Messages to tokens and back, by the model's chat template, so that a conversation goes on from the sampled tokens.

A chat that is rendered anew for every turn is tokenised anew: what the trainer would see then is not what was sampled.
So a turn is appended: `bridge` gives the tokens between the sampled ones and the next completion, found as the
difference of two renderings. Where the template rewrites what is before (it drops old thoughts, say) there is no such
difference, and the next turn begins a sequence of its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncrl.envs.tool_calls import Hermes, ToolCall, ToolParser
from asyncrl.task import Message, decoded_call

_PLACE = re.compile("\ue000(\\d+)\ue001")
"""Stands for a text that must not become special tokens. Of Unicode's private use, so that no text has it."""


@dataclass(frozen=True)
class Parsed:
    """A completion as a message."""

    text: str
    """What it says, without its thoughts and tool calls."""
    thoughts: str | None = None
    """None: it does not think in marks of its own."""
    tool_calls: list[ToolCall] = field(default_factory=list)

    @property
    def message(self) -> Message:
        message: Message = {"role": "assistant", "content": self.text}
        if self.thoughts is not None:
            message["reasoning_content"] = self.thoughts
        if calls := [call for call in self.tool_calls if not call.error]:
            message["tool_calls"] = [
                {"type": "function", "id": c.id, "function": {"name": c.name, "arguments": c.arguments}} for c in calls
            ]
        return message


class NoTemplate(ValueError):
    """The template cannot render these messages, and why."""


class Template:
    """Of one model. Not for several threads."""

    def __init__(
        self, tokenizer: Any, variables: Mapping[str, Any] | None = None, tool_parser: ToolParser | None = None
    ) -> None:
        """variables: `data.chat_template_kwargs`, for every rendering alike. `tool_parser`: Hermes' by default."""
        self.tokenizer, self._variables = tokenizer, dict(variables or {})
        self._parser = tool_parser or Hermes()
        added = tokenizer.added_tokens_decoder
        self._special = {token: str(text) for token, text in added.items() if text.special}
        self.end = self._end_of_turn()
        """The token that ends a turn of the assistant; None: the template has none, and no turn is bridged."""

    def unseen(self, tools: Sequence[str], messages: Sequence[Message]) -> str:
        """What is to be said if the model knows nothing of some tools: neither the template nor a message has them."""
        names = [name for name in tools if name not in str(messages)]
        if not names or "tools" in json.dumps(self.tokenizer.chat_template or ""):
            return ""
        return (
            f"the model's chat template shows no tools: the model knows nothing of {', '.join(names)}; describe them "
            "in the first message, with <tool_call> and </tool_call> around the JSON of a call"
        )

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return tuple(sorted({self.end, self.tokenizer.eos_token_id} - {None}))

    # -- to tokens

    def render(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """The whole conversation, up to where the assistant begins. Raises NoTemplate."""
        hidden: list[str] = []
        text = self._text([self._hide(m, hidden) for m in messages], tools, add_generation_prompt=True)
        return self._tokens(text, hidden)

    def bridge(
        self,
        sampled: Sequence[int],
        messages: Sequence[Message],
        new: Sequence[Message],
        tools: list[dict[str, Any]] | None = None,
    ) -> list[int] | None:
        """The tokens from the end of `sampled` to where the assistant begins again.

        `messages` ends with the assistant's message that `sampled` is, `new` are those after it. None if the template
        writes the conversation anew. Raises NoTemplate.
        """
        if self.end is None:
            return None
        ends = list(sampled[-1:]) == [self.end]
        if not ends and sampled and sampled[-1] in self._special:
            return None  # it ended its turn in a way that the template does not write
        hidden: list[str] = []
        earlier, later = [self._hide(m, hidden) for m in messages], [self._hide(m, hidden) for m in new]
        before = self._text(earlier, tools, add_generation_prompt=False)
        after = self._text([*earlier, *later], tools, add_generation_prompt=True)
        place = before.rfind(self._special[self.end])
        # The mark must be that of the last turn, not of one before it.
        without = self._text(earlier[:-1], tools, add_generation_prompt=False)
        earliest = len(os.path.commonprefix([before, without]))  # noqa: RUF071
        if place < earliest or not after.startswith(before):
            return None
        # With the mark, as some tokenizers begin a text in a way of their own.
        tokens = self._tokens(after[place:], hidden)
        return tokens[1:] if ends else tokens

    def _text(self, messages: list[Message], tools: Any, *, add_generation_prompt: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False, **self._variables
            )
        # A template is a program of the model's authors, and may raise whatever it likes.
        except Exception as error:
            raise NoTemplate(f"the model's chat template refuses the conversation: {error}") from error
        return text

    def _hide(self, message: Message, hidden: list[str]) -> Message:
        """With arguments of calls as objects, and texts that hold the name of a special token as places."""
        calls = [decoded_call(call) for call in message.get("tool_calls") or ()]
        told = {name: self._hidden(value, hidden) for name, value in message.items() if name != "role"}
        return {"role": message.get("role"), **told, **({"tool_calls": self._hidden(calls, hidden)} if calls else {})}

    def _hidden(self, value: Any, hidden: list[str]) -> Any:
        if isinstance(value, dict):
            return {self._hidden(key, hidden): self._hidden(inner, hidden) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._hidden(inner, hidden) for inner in value]
        if isinstance(value, str) and self._marked(value):
            hidden.append(value)
            return f"\ue000{len(hidden) - 1}\ue001"
        return value

    def _marked(self, text: str) -> bool:
        return "\ue000" in text or any(mark in text for mark in self._special.values())

    def _tokens(self, text: str, hidden: list[str]) -> list[int]:
        """As the tokenizer reads the text, but for the hidden ones, which are text and nothing else."""
        tokens: list[int] = []
        for part, is_place in _parts(text):
            is_place = is_place and int(part) < len(hidden)
            one = hidden[int(part)] if is_place else part
            tokens += self.tokenizer(one, add_special_tokens=False, split_special_tokens=is_place).input_ids
        while len(tokens) > 1 and tokens[0] == tokens[1] == self.tokenizer.bos_token_id:
            tokens = tokens[1:]
        return tokens

    def _end_of_turn(self) -> int | None:
        try:
            text = self._text(
                [{"role": "user", "content": "a"}, {"role": "assistant", "content": "zq"}],
                None,
                add_generation_prompt=False,
            )
        except NoTemplate:
            return None
        rest = text[text.rfind("zq") + 2 :]
        tokens = self.tokenizer(rest, add_special_tokens=False).input_ids
        return next((token for token in tokens if token in self._special), None)

    # -- from tokens

    def parse(
        self,
        tokens: Sequence[int],
        prompt: Sequence[int],
        turn: int = 0,
        tools: list[dict[str, Any]] | None = None,
    ) -> Parsed:
        """A completion as a message; `prompt` may have opened its thoughts. Calls are looked for behind them."""
        spoken = list(tokens)
        while spoken and spoken[-1] in self.stop_token_ids:
            spoken.pop()
        text = self.tokenizer.decode(spoken, skip_special_tokens=False)
        opened = self.tokenizer.decode(list(prompt[-8:])).rstrip().endswith("<think>")
        thoughts: str | None = None
        if opened or text.lstrip().startswith("<think>"):
            thought, closed, said = text.partition("</think>")
            thoughts, text = thought.replace("<think>", "", 1).strip("\n"), said.lstrip("\n") if closed else ""
        text, calls = self._parser.read(text, tools or (), turn)
        return Parsed(text, thoughts, calls)


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Pieces of the text, and the numbers of the places between them."""
    for number, part in enumerate(_PLACE.split(text)):
        if part:
            yield part, number % 2 == 1
