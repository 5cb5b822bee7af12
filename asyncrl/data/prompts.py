"""From a row to a prompt: text, or chat messages with the tools and settings that go to the model's chat template.

What cannot be a prompt, or would not be the one that was meant, is a BadPrompt, and never guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from asyncrl.data import adp
from asyncrl.recipe.data import DataRecipe
from asyncrl.task import Message, Task, decoded_call

TOOLS_COLUMN = "tools"
KWARGS_COLUMN = "chat_template_kwargs"
"""Columns of TRL's data sets that go to the chat template; the first is OpenAI's too."""
_MEDIA = ("image", "video", "audio")
_MAX_SHOWN_CHARS = 60


class BadPrompt(Exception):
    """A row is no prompt. `reason`: the name under which it is counted; the text: what is wrong, as said of the row."""

    def __init__(self, reason: str, fault: str) -> None:
        super().__init__(fault)
        self.reason = reason


@dataclass(frozen=True)
class Prompt:
    value: str | list[Message]
    """Text, or chat messages for the model's chat template; every content is text."""
    tools: list[dict[str, Any]] | None = None
    """For the template: functions in OpenAI's form."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further variables of the template."""
    answers: tuple[str | list[Message], ...] = ()
    """What follows it, of a row that has that (`demonstrations.py`)."""


@dataclass(frozen=True)
class PromptReader:
    """What a recipe makes of the rows of one table."""

    recipe: DataRecipe
    column: str
    columns: frozenset[str]
    from_arrow: bool
    """Arrow gives every object the keys of all others, and None where they were not."""

    def read(self, row: dict[str, Any]) -> Prompt:
        """Raises BadPrompt."""
        value = row[self.column]
        if value is None or (isinstance(value, str) and not value.strip()):
            raise BadPrompt("prompt_empty", "is null" if value is None else "is empty")
        messages = self.messages(value)
        if messages is None and not isinstance(value, str):
            raise BadPrompt("prompt_malformed", f"must be text or a list of chat messages, not {_shown(value)}")
        if messages is None and not self.recipe.chat:
            self.check_text(value)
            return Prompt(value)
        messages = messages or [{"role": "user", "content": value}]
        for message in messages:
            self.check_text(message.get("content") or "")
        if not any((m.get("content") or "").strip() or m.get("tool_calls") for m in messages):
            raise BadPrompt("prompt_empty", "has only empty messages")
        if messages[-1]["role"] == "assistant":
            raise BadPrompt(
                "prompt_ends_with_assistant", "ends with the assistant's answer; a prompt must end before it"
            )
        if self.recipe.system is not None:
            # In the place of a system message of the row's own: templates allow one.
            others = [m for m in messages if m["role"] != "system"]
            messages = [{"role": "system", "content": self.recipe.system}, *others]
        own = _parsed(self._plain(row.get(KWARGS_COLUMN)), KWARGS_COLUMN) or {}
        if not isinstance(own, dict):
            raise BadPrompt("prompt_malformed", f"has {KWARGS_COLUMN} that are no mapping: {_shown(own)}")
        return Prompt(messages, self._tools(row), {**self.recipe.chat_template_kwargs, **own})

    def messages(self, value: Any) -> list[Message] | None:
        """The chat that `value` is, with texts as contents. Raises BadPrompt for a message without one."""
        if self.from_arrow and isinstance(value, list):
            value = [_without_others(message) for message in value]
        try:
            messages = as_messages(value)
        except adp.BadTrajectory as error:
            raise BadPrompt(error.reason, str(error)) from error
        return None if messages is None else [_message(m, i) for i, m in enumerate(messages)]

    def _tools(self, row: dict[str, Any]) -> list[dict[str, Any]] | None:
        tools = _parsed(self._plain(row.get(TOOLS_COLUMN)), TOOLS_COLUMN)
        if not tools:
            return None
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise BadPrompt(
                "prompt_malformed", f"has tools that are no list of functions in OpenAI's form: {_shown(tools)}"
            )
        return tools

    def check_text(self, text: str) -> None:
        for kind in _MEDIA:
            if f"<{kind}>" in text and {kind, f"{kind}s"} & self.columns:
                raise BadPrompt(
                    "prompt_not_text", f"has a place for one of its {kind}s; asyncrl trains models on text only"
                )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadPrompt("prompt_malformed", f"has half a character ({_shown(text[error.start])})") from error

    def _plain(self, value: Any) -> Any:
        return _without_none(value) if self.from_arrow else value


def traits(of: Prompt | Task) -> Iterator[str]:
    """What a chat template may not take, or not show: which role follows which, tools, calls of them, variables."""
    prompt = of.value if isinstance(of, Prompt) else of.prompt
    if isinstance(prompt, str):
        yield "text"
        return
    for messages in [[*prompt, *answer] for answer in of.answers] or [prompt]:
        yield from (f"{role} after {before}" for before, role in pairwise(["", *(str(m["role"]) for m in messages)]))
        if any(message.get("tool_calls") for message in messages):
            yield "tool calls"
    if of.tools:
        yield "tools"
    yield from (f"variable {name}" for name in of.template_kwargs)


def as_messages(value: Any) -> list[Message] | None:
    """The chat messages that `value` is, or is the JSON of; also if it is a trajectory's content. Raises
    adp.BadTrajectory."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if adp.is_content(value):
        return adp.messages(value)
    is_chat = isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value)
    return value if is_chat else None


def _message(message: Message, number: int) -> Message:
    """The message with its content as text; keys that are None are those that only other messages have."""
    calls = message.get("tool_calls") or []
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, number) for part in content)
    if not isinstance(content, str) and not (content is None and calls):
        fault = "has no content" if content is None else f"has no text as content: {_shown(content)}"
        raise BadPrompt("prompt_malformed", f"{fault} (message {number}, {message['role']})")
    rest = {key: item for key, item in message.items() if item is not None and key != "content"}
    if calls:
        rest["tool_calls"] = [decoded_call(call) for call in calls]
    return {**rest, "content": content} if "content" in message else rest


def _part(part: Any, number: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise BadPrompt(
        "prompt_not_text", f"has a part of type '{kind}' in message {number}; asyncrl trains models on text only"
    )


def _parsed(value: Any, column: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as error:
        raise BadPrompt("prompt_malformed", f"has {column} that are no JSON: {_shown(value)}") from error


def _without_others(message: Any) -> Any:
    """A message without what only others have. One that calls tools has no content, and templates ask whether it is
    None."""
    plain = _without_none(message)
    calls = isinstance(plain, dict) and plain.get("tool_calls") and "content" not in plain
    return {**plain, "content": None} if calls else plain


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."
