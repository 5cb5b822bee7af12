"""Tools: Python functions that the model may call, whose schema is made of the signature and the docstring; and tools
of a server."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from asyncrl.envs.environment import ToolUse
from asyncrl.envs.tool_calls import ToolCall
from asyncrl.errors import UserError
from asyncrl.plugins import encodable, one_line

_MOST_CHARS = 10_000


async def called(function: Callable[..., Any], *arguments: Any, **kwargs: Any) -> Any:
    """What a user's function returns, plain or async: a plain one runs in a thread."""
    if inspect.iscoroutinefunction(function):
        return await function(*arguments, **kwargs)
    result = await asyncio.to_thread(function, *arguments, **kwargs)
    return await result if inspect.isawaitable(result) else result


class Tool:
    """One function, plain or async. A plain one runs in a thread."""

    def __init__(self, function: Callable[..., Any], timeout_s: float) -> None:
        """Raises UserError if its signature is no schema."""
        self.function, self.timeout_s = function, timeout_s
        self.name = getattr(function, "__name__", "")
        if not self.name.isidentifier():
            raise UserError(f"tool {function!r} has no name to be called by; define it with def")
        self._arguments = _model(self.name, function)

    @functools.cached_property
    def schema(self) -> dict[str, Any]:
        """OpenAI's form of a tool."""
        parameters = self._arguments.model_json_schema()
        parameters.pop("title", None)
        for field in parameters.get("properties", {}).values():
            field.pop("title", None)
        description = inspect.getdoc(self.function) or self.name
        function = {"name": self.name, "description": description, "parameters": parameters}
        return {"type": "function", "function": function}

    async def call(self, arguments: dict[str, Any]) -> tuple[str, bool]:
        """What the model reads of it: what the function returned, or why it did not; and whether it did."""
        try:
            checked = self._arguments.model_validate(arguments)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            return f"Error: wrong arguments for {self.name}: {wrong}", False
        values = {name: getattr(checked, name) for name in type(checked).model_fields}
        return await _answered(self.name, self.timeout_s, called(self.function, **values))


@dataclass(frozen=True)
class RemoteTool:
    """One that a server has, which checks the arguments itself."""

    schema: dict[str, Any]
    """OpenAI's form of a tool."""
    function: Callable[[dict[str, Any]], Awaitable[str]]
    timeout_s: float = 0.0
    """Of the conversation that it is given to."""

    @property
    def name(self) -> str:
        return str(self.schema["function"]["name"])

    async def call(self, arguments: dict[str, Any]) -> tuple[str, bool]:
        """What the model reads of it, and whether it is a result."""
        return await _answered(self.name, self.timeout_s, self.function(arguments))


class ToolError(Exception):
    """A call that went wrong, in words for the model."""


async def _answered(name: str, timeout_s: float, call: Awaitable[Any]) -> tuple[str, bool]:
    """What the call returned, or why it did not, and whether it did. Whatever a tool does wrong the model reads."""
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            result = await call
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        if isinstance(error, TimeoutError) and deadline.expired():
            return f"Error: {name} took more than {timeout_s:g} s", False
        return f"Error: {error if isinstance(error, ToolError) else one_line(error)}", False
    return _text(result), True


_kept = functools.lru_cache(1024)(Tool)
"""A schema takes milliseconds to make, and every episode has the same tools."""


def _made(function: Callable[..., Any] | RemoteTool, timeout_s: float) -> Tool | RemoteTool:
    """A method, or what is made inside of a function, is an episode's own, and goes with it."""
    if isinstance(function, RemoteTool):
        return replace(function, timeout_s=timeout_s)
    is_plain = inspect.isfunction(function) and "<locals>" not in function.__qualname__
    return (_kept if is_plain else Tool)(function, timeout_s)


class Toolbox:
    """The tools of one conversation."""

    def __init__(
        self,
        functions: Sequence[Callable[..., Any] | RemoteTool],
        timeout_s: float,
        schemas: list[dict[str, Any]] | None = None,
        use: ToolUse | None = None,
    ) -> None:
        """schemas: of tools that someone else calls. `use` counts the calls. Raises UserError."""
        self._use = use or ToolUse()
        tools = [_made(function, timeout_s) for function in functions]
        self._tools = {tool.name: tool for tool in tools}
        if len(self._tools) < len(tools):
            raise UserError(f"two tools have one name among {', '.join(tool.name for tool in tools)}; rename one")
        self.schemas = [tool.schema for tool in tools] or schemas or None
        """OpenAI's form; None: there are none."""

    @property
    def names(self) -> list[str]:
        return list(self._tools)

    async def answer(self, calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
        """A message for each call, in order; they run side by side."""
        texts = await asyncio.gather(*(self._counted(call) for call in calls))
        return [
            {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": text}
            for call, text in zip(calls, texts, strict=True)
        ]

    async def _counted(self, call: ToolCall) -> str:
        began = time.perf_counter()
        text, is_good = await self._answer(call)
        self._use.add(ToolUse(1, not is_good, time.perf_counter() - began))
        return text

    async def _answer(self, call: ToolCall) -> tuple[str, bool]:
        if call.error:
            return f"Error: {call.error}", False
        tool = self._tools.get(call.name)
        if tool is None:
            return f"Error: there is no tool {call.name!r}, only {', '.join(self._tools) or 'none'}", False
        return await tool.call(call.arguments)


def _model(name: str, function: Callable[..., Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    try:
        signature = inspect.signature(function, eval_str=True)
    except (NameError, TypeError, ValueError) as error:
        raise UserError(f"tool {name}: its signature cannot be read: {error}") from error
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f"tool {name}: parameter {parameter.name} has no name of its own; write plain parameters")
        if parameter.annotation is parameter.empty:
            raise UserError(
                f"tool {name}: parameter {parameter.name} has no type hint, so the model has no schema; write "
                f"{parameter.name}: int, say"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (parameter.annotation, default)
    try:
        return create_model(name, __config__={"extra": "forbid"}, **fields)
    except Exception as error:
        raise UserError(f"tool {name}: its type hints are no schema: {error}") from error


def _text(result: Any) -> str:
    if isinstance(result, str):
        text = result
    else:
        try:
            text = json.dumps(result, ensure_ascii=False)
        except (TypeError, ValueError):
            text = str(result)
    text = encodable(text)
    if len(text) > _MOST_CHARS:
        return f"{text[:_MOST_CHARS]}\n[{len(text) - _MOST_CHARS} more characters are left out]"
    return text
