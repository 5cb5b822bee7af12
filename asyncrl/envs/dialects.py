"""Requests and answers of the gateway: OpenAI's chat completions, and Anthropic's messages as the same thing.

A field that would change what is sampled, or that nobody here knows, is refused: an answer that ignores it would be
trained as if it had been obeyed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from asyncrl.envs.chat import Reply
from asyncrl.envs.tool_calls import ToolCall
from asyncrl.task import Message

_FINISH = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Refused(ValueError):
    """The request cannot be answered as it asks, and why."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = ""
    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    metadata: Any = None
    """Not looked at."""


class ChatRequest(_Request):
    """`POST /v1/chat/completions`."""

    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    stop: str | list[str] | None = None
    n: int | None = None
    logprobs: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    stream_options: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    seed: int | None = None
    """Not looked at: a rollout has one of its own."""
    user: Any = None
    store: Any = None
    service_tier: Any = None
    """These three and `metadata` are for OpenAI's own records."""

    def check(self, temperature: float) -> None:
        """Raises Refused."""
        _check_sampling(self, temperature)
        if not all(_is_function(tool) for tool in self.tools or ()):
            raise Refused('tools are a list of {"type": "function", "function": {"name": ..., "parameters": ...}}')
        for name, only in (("n", 1), ("presence_penalty", 0), ("frequency_penalty", 0), ("logprobs", False)):
            if (value := getattr(self, name)) is not None and value != only:
                raise Refused(f"{name} is {value}, and only {only} is possible here; leave it out")
        if self.logit_bias:
            raise Refused("logit_bias would change what is sampled without the trainer's knowledge; leave it out")
        if self.response_format is not None and self.response_format.get("type") != "text":
            raise Refused("response_format would change what is sampled without the trainer's knowledge; leave it out")

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def conversation(self) -> list[Message]:
        return [_plain(message) for message in self.messages]


class MessagesRequest(_Request):
    """Anthropic's `POST /v1/messages`."""

    max_tokens: int = Field(ge=1, lt=2**31)
    system: Any = None
    stop_sequences: list[str] | None = None
    thinking: dict[str, Any] | None = None
    top_k: int | None = None
    service_tier: Any = None
    """Not looked at."""

    def check(self, temperature: float) -> None:
        """Raises Refused."""
        _check_sampling(self, temperature)
        if self.top_k is not None:
            raise Refused("top_k would change what is sampled without the trainer's knowledge; leave it out")
        if self.thinking is not None and self.thinking.get("type") != "disabled":
            raise Refused("thinking is set by data.chat_template_kwargs of the recipe; leave it out")

    def as_chat(self) -> ChatRequest:
        """The same in OpenAI's words. Raises Refused for contents that are no text."""
        messages: list[Message] = []
        if self.system:
            messages.append({"role": "system", "content": _text(self.system)})
        for message in self.messages:
            messages += _of_anthropic(message)
        tools = [
            {
                "type": "function",
                "function": {
                    "name": tool.get("name"),
                    "description": tool.get("description", ""),
                    "parameters": tool.get("input_schema", {}),
                },
            }
            for tool in self.tools or ()
        ]
        return ChatRequest(
            model=self.model,
            messages=messages,
            tools=tools or None,
            tool_choice=self.tool_choice.get("type") if isinstance(self.tool_choice, dict) else self.tool_choice,
            stream=self.stream,
            max_tokens=self.max_tokens,
            stop=self.stop_sequences,
        )


def _check_sampling(request: _Request, temperature: float) -> None:
    if request.temperature is not None and request.temperature != temperature:
        raise Refused(
            f"temperature is {request.temperature:g}, and the trainer expects the recipe's {temperature:g} "
            "(rollout.temperature); leave it out"
        )
    if request.top_p is not None and request.top_p != 1:
        raise Refused("top_p would change what is sampled without the trainer's knowledge; leave it out")
    if request.tool_choice not in (None, "auto", {"type": "auto"}):
        raise Refused(f"tool_choice is {request.tool_choice!r}, and only 'auto' is possible here; leave it out")


def _plain(message: Message) -> Message:
    """A message whose content is a text; what chat templates do not know is left out."""
    role = message.get("role")
    if not isinstance(role, str):
        raise Refused("a message has no role")
    plain: Message = {"role": "system" if role == "developer" else role, "content": _text(message.get("content"))}
    for name in ("tool_call_id", "name", "reasoning_content"):
        if message.get(name) is not None:
            if not isinstance(message[name], str):
                raise Refused(f"a message's {name} is of type {type(message[name]).__name__}, not a text")
            plain[name] = message[name]
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list) or not all(_is_function(call) for call in calls):
            raise Refused('tool_calls are a list of {"id": ..., "function": {"name": ..., "arguments": ...}}')
        plain["tool_calls"] = calls
    return plain


def _is_function(value: Any) -> bool:
    """A tool, or a call of one."""
    function = value.get("function") if isinstance(value, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _text(content: Any) -> str:
    """Of a text or of parts that are texts. Raises Refused."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise Refused(f"a message's content is of type {type(content).__name__}, neither text nor parts")
    parts = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise Refused(f"a message has a part of type {kind!r}; only texts are possible here")
        parts.append(part["text"])
    return "".join(parts)


def _of_anthropic(message: Message) -> Iterator[Message]:
    """One message of Anthropic's may be several of OpenAI's: each tool result is one."""
    content, role = message.get("content"), message.get("role")
    if not isinstance(content, list):
        yield {"role": role, "content": _text(content)}
        return
    texts, calls, thoughts = [], [], None
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input", {})}
            calls.append({"type": "function", "id": block.get("id"), "function": function})
        elif kind == "tool_result":
            result = _text(block.get("content"))
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result}
        elif kind == "thinking":
            thoughts = block.get("thinking")
        else:
            texts.append(_text([block]))
    if texts or calls:
        plain: Message = {"role": role, "content": "".join(texts)}
        if calls:
            plain["tool_calls"] = calls
        if thoughts is not None:
            plain["reasoning_content"] = thoughts
        yield plain


def key(message: Message) -> str:
    """What makes two messages the same, however a client writes them."""
    calls = [_call_key(call) for call in message.get("tool_calls") or ()]
    return json.dumps([message.get("role"), (message.get("content") or "").strip(), calls, message.get("tool_call_id")])


def _call_key(call: Any) -> Any:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments)
    return [call.get("id"), function.get("name"), json.dumps(arguments, sort_keys=True)]


# -- answers


def _calls(reply: Reply) -> list[ToolCall]:
    return [call for call in reply.tool_calls if not call.error]


def _finish(reply: Reply) -> str:
    return "tool_calls" if _calls(reply) else reply.finish_reason


def _usage(reply: Reply) -> dict[str, int]:
    prompt, sampled = reply.num_prompt_tokens, reply.num_tokens
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def _message(reply: Reply) -> Message:
    message: Message = {"role": "assistant", "content": reply.text or None}
    if reply.thoughts is not None:
        message["reasoning_content"] = reply.thoughts
    if calls := _calls(reply):
        message["tool_calls"] = [_call(call) for call in calls]
    return message


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def completion(reply: Reply, number: str, model: str) -> dict[str, Any]:
    """OpenAI's chat completion."""
    choice = {"index": 0, "message": _message(reply), "finish_reason": _finish(reply), "logprobs": None}
    made = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": int(time.time()), "model": model}
    return {**made, "choices": [choice], "usage": _usage(reply)}


def chunks(reply: Reply, number: str, model: str, with_usage: bool) -> Iterator[str]:
    """The same as server-sent events: the whole answer is there before the first."""
    made = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": int(time.time()), "model": model}

    def event(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event({**made, "choices": [choice]})

    message = _message(reply)
    yield event({"role": "assistant", "content": ""})
    for name in ("reasoning_content", "content"):
        if message.get(name):
            yield event({name: message[name]})
    for index, call in enumerate(message.get("tool_calls") or ()):
        yield event({"tool_calls": [{"index": index, **call}]})
    yield event({}, _finish(reply))
    if with_usage:
        yield _event({**made, "choices": [], "usage": _usage(reply)})
    yield "data: [DONE]\n\n"


def anthropic_message(reply: Reply, number: str, model: str) -> dict[str, Any]:
    """Anthropic's message."""
    blocks: list[dict[str, Any]] = []
    if reply.thoughts is not None:
        blocks.append({"type": "thinking", "thinking": reply.thoughts, "signature": ""})
    if reply.text:
        blocks.append({"type": "text", "text": reply.text})
    blocks += [{"type": "tool_use", "id": c.id, "name": c.name, "input": c.arguments} for c in _calls(reply)]
    usage = {"input_tokens": reply.num_prompt_tokens, "output_tokens": reply.num_tokens}
    made = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": model}
    reason = _FINISH.get(_finish(reply), "end_turn")
    return {**made, "content": blocks, "stop_reason": reason, "stop_sequence": None, "usage": usage}


def anthropic_events(reply: Reply, number: str, model: str) -> Iterator[str]:
    """The same as server-sent events."""
    whole = anthropic_message(reply, number, model)
    usage = whole["usage"]
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 0}}
    yield _event({"type": "message_start", "message": begun}, named=True)
    for index, block in enumerate(whole["content"]):
        kind = block["type"]
        if kind == "tool_use":
            empty, delta = (
                {**block, "input": {}},
                {"type": "input_json_delta", "partial_json": json.dumps(block["input"])},
            )
        elif kind == "thinking":
            empty, delta = {**block, "thinking": ""}, {"type": "thinking_delta", "thinking": block["thinking"]}
        else:
            empty, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
        yield _event({"type": "content_block_start", "index": index, "content_block": empty}, named=True)
        yield _event({"type": "content_block_delta", "index": index, "delta": delta}, named=True)
        yield _event({"type": "content_block_stop", "index": index}, named=True)
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _event({"type": "message_delta", "delta": delta, "usage": usage}, named=True)
    yield _event({"type": "message_stop"}, named=True)


def _event(data: dict[str, Any], named: bool = False) -> str:
    name = f"event: {data['type']}\n" if named else ""
    return f"{name}data: {json.dumps(data)}\n\n"
