"""Tool calls in what a model wrote. Every family of models has a form of its own: Qwen's and Hermes' is read here, the
others by vLLM's parsers, under their names there (`--tool-call-parser`)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from asyncrl.errors import UserError, nearest
from asyncrl.plugins import one_line

HERMES = "hermes"
_CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
"""Further ones: drafts in them are no calls."""
_MARKS = {
    "<function=": "qwen3_coder",
    "<arg_key>": "glm45",
    "[TOOL_CALLS]": "mistral",
    "<|tool_calls_section_begin|>": "kimi_k2",
    "function<\uff5ctool\u2581sep\uff5c>": "deepseek_v3",
    "<\uff5ctool\u2581sep\uff5c>": "deepseek_v31",
    "<tool_call>": HERMES,
    "<|python_tag|>": "llama3_json",
}
"""What a chat template has that shows calls in a form, the surest first."""


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asked for."""

    id: str
    name: str
    arguments: dict[str, Any]
    error: str = ""
    """Why it cannot be made: no JSON, cut off, no name."""
    raw: str = ""
    """As the model wrote it."""


class ToolParser(Protocol):
    """`tools`: schemas in OpenAI's form."""

    def read(self, text: str, tools: Sequence[dict[str, Any]], turn: int) -> tuple[str, list[ToolCall]]:
        """The text without its calls, and the calls; their ids are made of `turn`."""


def tool_parser(name: str | None, tokenizer: Any) -> tuple[str, ToolParser]:
    """By name; None: by the chat template, Hermes' where it shows no form. Raises UserError."""
    if name is None:
        template = json.dumps(tokenizer.chat_template or "", ensure_ascii=False)
        name = next((form for mark, form in _MARKS.items() if mark in template), HERMES)
    return name, Hermes() if name == HERMES else Vllm(name, tokenizer)


def call_id(turn: int, number: int) -> str:
    """Nine letters and digits, as Mistral's templates want them."""
    return f"c{turn:04}{number:04}"


class Hermes:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

    def read(self, text: str, tools: Sequence[dict[str, Any]], turn: int) -> tuple[str, list[ToolCall]]:
        matches = list(_CALL.finditer(_THOUGHT.sub(lambda thought: "." * len(thought[0]), text)))
        calls = [_hermes_call(match, call_id(turn, number)) for number, match in enumerate(matches)]
        for match, call in reversed(list(zip(matches, calls, strict=True))):
            if not call.error:  # else it stays in the text, as it is no call
                text = text[: match.start()] + text[match.end() :]
        return text.strip() if calls else text, calls


class Vllm:
    """One of vLLM's. It takes what it does not understand for text."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        """Takes seconds, as vLLM is imported. Raises UserError."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.tokenizers.hf import get_cached_tokenizer
        from vllm.tool_parsers import ToolParserManager

        known = sorted({*ToolParserManager.list_registered(), HERMES} - {"openai"})
        if name not in known:
            raise UserError(f"env.tool_parser '{name}' is not one of {', '.join(known)}{nearest(name, known)}")
        self._kind, self._tokenizer = ToolParserManager.get_tool_parser(name), get_cached_tokenizer(tokenizer)
        self._request = ChatCompletionRequest

    def read(self, text: str, tools: Sequence[dict[str, Any]], turn: int) -> tuple[str, list[ToolCall]]:
        request = self._request(model="policy", messages=[], tools=list(tools) or None)
        try:
            found = self._kind(self._tokenizer, request.tools).extract_tool_calls(text, request)
        # It is written for what a model should say, and models say anything.
        except Exception as error:
            return text, [ToolCall(call_id(turn, 0), "", {}, f"the call cannot be read: {one_line(error)}", text)]
        calls = [
            _checked(call_id(turn, number), call.function.name, call.function.arguments, call.function.arguments)
            for number, call in enumerate(found.tool_calls)
        ]
        return (found.content or "").strip() if calls else text, calls


def _hermes_call(match: re.Match[str], name: str) -> ToolCall:
    raw = match[1].strip()
    if not match[2]:
        return ToolCall(name, "", {}, "the call is cut off: </tool_call> is missing", raw)
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return ToolCall(name, "", {}, f"the call is no JSON: {error}", raw)
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return ToolCall(name, "", {}, 'the call has no name; write {"name": ..., "arguments": {...}}', raw)
    return _checked(name, said["name"], said.get("arguments", said.get("parameters", {})), raw)


def _checked(name: str, function: str, arguments: Any, raw: str) -> ToolCall:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return ToolCall(name, function, {}, f"its arguments are no JSON: {error}", raw)
    if not isinstance(arguments, dict):
        return ToolCall(name, function, {}, "its arguments are no JSON object", raw)
    return ToolCall(name, function, arguments, "", raw)
