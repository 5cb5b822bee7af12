"""The endpoint, asked by the real clients and by hand: exact tokens, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from anthropic import AsyncAnthropic
from chats import THINKING, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import APIStatusError, AsyncOpenAI
from test_chat import CALL, TEMPLATE, Script

from asyncrl.envs.dialects import ChatRequest, MessagesRequest
from asyncrl.envs.environment import Ask, ContextFull, EpisodeOver, Sampled
from asyncrl.envs.gateway import Gateway, Session
from asyncrl.envs.template import Template

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
        },
    }
]
HI = [{"role": "user", "content": "hi"}]
CALLS = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]


class Server:
    """A gateway with one session; `warned`: what it told the run's log."""

    def __init__(self, gateway: Gateway, session: Session, url: str, warned: list[str]) -> None:
        self.gateway, self.session, self.url, self.warned = gateway, session, url, warned
        self.openai = AsyncOpenAI(base_url=url, api_key=gateway.token, max_retries=0)
        self.anthropic = AsyncAnthropic(base_url=url, api_key=gateway.token, max_retries=0)

    async def post(self, path: str, body: Any, token: str | None = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.gateway.token if token is None else token}"}
        async with httpx.AsyncClient(timeout=30) as client:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await client.post(self.url + path, content=content, headers=headers)


@asynccontextmanager
async def serving(policy: Any, temperature: float = 1.0) -> AsyncIterator[Server]:
    gateway, warned = Gateway(), []
    session = Session(policy, Template(tokenizer(THINKING, "<|im_end|>")), temperature, warned.append)
    server = Server(gateway, session, gateway.open(session), warned)
    try:
        yield server
    finally:
        await server.openai.close()
        await server.anthropic.close()
        assert gateway._server is not None
        gateway._server.cancel()
        await asyncio.gather(gateway._server, return_exceptions=True)


def asked(policy: Any, do: Callable[[Server], Awaitable[Any]], **more: Any) -> Any:
    async def scenario() -> Any:
        async with serving(policy, **more) as server:
            return await do(server)

    return asyncio.run(asyncio.wait_for(scenario(), 60))


def text(ask: Ask) -> str:
    return TEMPLATE.tokenizer.decode(ask.tokens)


def goes_on(first: Ask, second: Ask, said: str) -> bool:
    """Whether the second prompt is the first, what was sampled, token by token, and more."""
    sampled = [t for c in said for t in TEMPLATE.tokenizer(c, add_special_tokens=False).input_ids]
    before = [*first.tokens, *sampled, TEMPLATE.end]
    return second.tokens[: len(before)] == before


@pytest.mark.parametrize("stream", [False, True])
def test_openais_client_calls_tools_in_parallel_and_goes_on_from_the_sampled_tokens(stream: bool) -> None:
    script = Script("hello " + CALL * 2, "5 it is")

    async def do(server: Server) -> None:
        messages: list[Any] = list(HI)
        if stream:
            calls: dict[int, Any] = {}
            content, usage = "", None
            chunks = await server.openai.chat.completions.create(
                model="policy", messages=messages, tools=TOOLS, stream=True, stream_options={"include_usage": True}
            )
            async for chunk in chunks:
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    content += choice.delta.content or ""
                    for call in choice.delta.tool_calls or ():
                        calls[call.index] = {
                            "id": call.id,
                            "name": call.function.name,
                            "arguments": call.function.arguments,
                        }
            made = [
                {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
                for c in calls.values()
            ]
            assert usage is not None
            assert usage.prompt_tokens == len(script.asks[0].tokens)
            messages.append({"role": "assistant", "content": content, "tool_calls": made})
        else:
            answer = (await server.openai.chat.completions.create(model="p", messages=messages, tools=TOOLS)).choices[0]
            assert answer.finish_reason == "tool_calls"
            messages.append(answer.message.model_dump(exclude_none=True))
        assert [c["function"]["name"] for c in messages[-1]["tool_calls"]] == ["add", "add"]
        assert json.loads(messages[-1]["tool_calls"][0]["function"]["arguments"]) == {"a": 2, "b": 3}
        messages += [{"role": "tool", "tool_call_id": c["id"], "content": "5"} for c in messages[-1]["tool_calls"]]
        last = await server.openai.chat.completions.create(model="p", messages=messages, tools=TOOLS)
        assert last.choices[0].message.content == "5 it is"
        assert last.usage.total_tokens == len(script.asks[1].tokens) + last.usage.completion_tokens

    asked(script, do)
    assert goes_on(*script.asks, "hello " + CALL * 2)
    assert text(script.asks[1]).count("<tool_response>5</tool_response>") == 2
    assert all(ask.train for ask in script.asks)


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_client(stream: bool) -> None:
    script = Script("<think>\nhm\n</think>\n\nwell " + CALL, "5")
    tool = {"name": "add", "description": "Adds.", "input_schema": TOOLS[0]["function"]["parameters"]}

    async def do(server: Server) -> None:
        more = {"model": "p", "max_tokens": 50, "system": "Be kind.", "tools": [tool]}
        messages: list[Any] = list(HI)
        if stream:
            async with server.anthropic.messages.stream(messages=messages, **more) as events:
                answer = await events.get_final_message()
        else:
            answer = await server.anthropic.messages.create(messages=messages, **more)
        assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"]
        assert (answer.stop_reason, answer.content[2].input) == ("tool_use", {"a": 2, "b": 3})
        result = {"type": "tool_result", "tool_use_id": answer.content[2].id, "content": "5"}
        messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
        last = await server.anthropic.messages.create(messages=messages, **more)
        assert (last.content[0].text, last.stop_reason) == ("5", "end_turn")

    asked(script, do)
    assert goes_on(*script.asks, "<think>\nhm\n</think>\n\nwell " + CALL)
    assert "Be kind." in text(script.asks[0])
    assert script.asks[0].max_new_tokens == 50


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 0.3}, "temperature is 0.3, and the trainer expects the recipe's 0.5"),
        ({"top_p": 0.9}, "top_p would change"),
        ({"n": 2}, "n is 2, and only 1"),
        ({"presence_penalty": 1.0}, "presence_penalty is 1.0"),
        ({"logit_bias": {"5": 3}}, "logit_bias would change"),
        ({"logprobs": True}, "logprobs is True"),
        ({"response_format": {"type": "json_object"}}, "response_format would change"),
        ({"tool_choice": "required"}, "tool_choice is 'required'"),
        ({"extra_body": {"guided_json": {}}}, "guided_json: Extra inputs"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"max_tokens": -1}, "max_tokens: Input should be greater"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "'image_url'",
        ),
        ({"messages": [{"content": "no role"}]}, "a message has no role"),
    ],
)
def test_what_would_not_be_trained_as_it_was_asked_is_refused(change: dict[str, Any], said: str) -> None:
    script = Script("yes")

    async def do(server: Server) -> None:
        with pytest.raises(APIStatusError) as caught:
            await server.openai.chat.completions.create(**{"model": "p", "messages": HI, **change})
        assert caught.value.status_code == 400
        assert caught.value.type == "invalid_request_error"
        assert said in str(caught.value)

    asked(script, do, temperature=0.5)
    assert script.asks == []


def test_the_recipes_own_temperature_and_harmless_fields_are_taken() -> None:
    script = Script("yes")

    async def do(server: Server) -> None:
        more = {
            "temperature": 0.5,
            "top_p": 1.0,
            "n": 1,
            "seed": 3,
            "user": "u",
            "metadata": {"a": "b"},
            "store": False,
        }
        await server.openai.chat.completions.create(model="p", messages=HI, max_completion_tokens=7, stop="x", **more)

    asked(script, do, temperature=0.5)
    assert (script.asks[0].max_new_tokens, script.asks[0].stop) == (7, ("x",))


def test_a_full_context_is_openais_error() -> None:
    async def do(server: Server) -> None:
        with pytest.raises(APIStatusError) as caught:
            await server.openai.chat.completions.create(model="p", messages=HI)
        assert (caught.value.status_code, caught.value.code) == (400, "context_length_exceeded")

    asked(Script(), do)


def test_without_token_or_session_nobody_is_answered() -> None:
    script = Script("yes")
    body = {"model": "p", "messages": HI}

    async def do(server: Server) -> list[int]:
        found = [(await server.post("/chat/completions", body, token)).status_code for token in ("x", "x" * 32, "-")]
        async with httpx.AsyncClient() as client:
            bare = await client.post(server.url + "/chat/completions", json=body)
        assert bare.json()["error"]["type"] == "authentication_error"
        other, server.url = server.url, server.url.replace("/s/", "/s/x")
        found.append((await server.post("/chat/completions", body)).status_code)
        server.url = other
        found.append((await server.post("/nothing", body)).status_code)
        server.gateway.close(server.url)
        found.append((await server.post("/chat/completions", body)).status_code)
        return found

    assert asked(script, do) == [401, 401, 401, 404, 404, 404]
    assert script.asks == []


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages": 5}', b'{"messages": [5]}', b'{"messages": ["a"]}',
        b'{"messages": [{"role": 5, "content": "a"}]}', b'{"messages": [{"role": "user", "content": 5}]}',
        b'{"messages": [{"role": "assistant", "content": "", "tool_calls": 5}]}',
        b'{"messages": [{"role": "assistant", "content": "", "tool_calls": [5]}]}',
        b'{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": 5}]}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "a"}], "tools": [5]}',
        b'{"messages": [{"role": "user", "content": "a"}], "stop": [1]}',
        b'{"messages": [{"role": "user", "content": "a"}], "stream_options": 5}',
        b'{"messages": [{"role": "user", "content": "a"}], "tool_choice": "auto", "max_tokens": ' + b"9" * 30 + b"}",
    ],
    ids=lambda body: repr(body[:60]),
)  # fmt: skip
@pytest.mark.parametrize("path", ["/chat/completions", "/messages", "/reward", "/../inference/v1/generate"])
def test_what_is_no_request_is_refused_in_openais_form(path: str, body: bytes) -> None:
    async def do(server: Server) -> None:
        answer = await server.post(path, body)
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["error"]["message"]

    asked(Script("yes"), do)


def test_a_request_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncrl.envs.gateway._MOST_BYTES", 2**20)

    async def do(server: Server) -> None:
        answer = await server.post("/chat/completions", b" " * (2**20 + 1))
        assert (answer.status_code, "more than 1 MiB" in answer.text) == (400, True)

    asked(Script(), do)


def test_side_calls_of_a_harness_are_answered_and_not_trained() -> None:
    script = Script("yes", "a title", "more")

    async def do(server: Server) -> list[str]:
        for tools in (TOOLS, None, TOOLS):
            more = {"tools": tools} if tools else {}
            await server.openai.chat.completions.create(model="p", messages=HI, **more)
        return server.warned

    assert [warning.endswith("are not trained") for warning in asked(script, do)] == [True]
    assert [ask.train for ask in script.asks] == [True, False, True]


def test_a_retry_gets_the_answer_that_was_lost() -> None:
    """By the clients' header; who asks the same again gets another sample."""
    script = Script("yes", "no")

    async def do(server: Server) -> list[str]:
        texts = []
        for retries in (0, 1, 0):
            headers = {"x-stainless-retry-count": str(retries)}
            made = await server.openai.chat.completions.create(model="p", messages=HI, extra_headers=headers)
            texts.append(made.choices[0].message.content)
        return texts

    assert asked(script, do) == ["yes", "yes", "no"]


def test_of_two_answers_that_look_alike_the_newest_goes_on() -> None:
    script = Script("<think>\nAAA\n</think>\n\nyes", "<think>\nBBB\n</think>\n\nyes", "no")

    async def do(server: Server) -> None:
        for _ in range(2):
            await server.openai.chat.completions.create(model="p", messages=HI)
        more = [*HI, {"role": "assistant", "content": "yes"}, {"role": "tool", "tool_call_id": "1", "content": "5"}]
        await server.openai.chat.completions.create(model="p", messages=more)

    asked(script, do)
    assert "BBB" in text(script.asks[2])
    assert "AAA" not in text(script.asks[2])


def test_a_changed_history_begins_anew_and_a_branch_goes_on() -> None:
    script = Script("yes", "left", "right", "other")

    async def do(server: Server) -> None:
        async def create(*messages: tuple[str, str]) -> None:
            told = [{"role": role, "content": content} for role, content in messages]
            await server.openai.chat.completions.create(model="p", messages=told)

        await create(("user", "hi"))
        await create(("user", "hi"), ("assistant", "yes"), ("user", "left?"))
        await create(("user", "hi"), ("assistant", "yes"), ("user", "right?"))
        await create(("user", "changed"), ("assistant", "yes"), ("user", "left?"))

    asked(script, do)
    first, left, right, changed = script.asks
    assert goes_on(first, left, "yes")
    assert goes_on(first, right, "yes")
    assert not goes_on(first, changed, "yes")
    assert "changed" in text(changed)


def test_who_hangs_up_frees_its_place() -> None:
    class Slow:
        ended = False

        async def generate(self, ask: Ask) -> Sampled:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                Slow.ended = True
                raise
            raise AssertionError

    async def do(server: Server) -> None:
        with pytest.raises(Exception, match="timed out"):
            await server.openai.with_options(timeout=0.5).chat.completions.create(model="p", messages=HI)
        for _ in range(50):
            if Slow.ended:
                return
            await asyncio.sleep(0.1)

    asked(Slow(), do)
    assert Slow.ended


@pytest.mark.parametrize(("error", "status"), [(EpisodeOver("it has ended"), 404), (ContextFull("full"), 400)])
def test_what_the_policy_says_is_an_answer(error: Exception, status: int) -> None:
    class Raises:
        async def generate(self, ask: Ask) -> Sampled:
            raise error

    async def do(server: Server) -> int:
        return (await server.post("/chat/completions", {"messages": HI})).status_code

    assert asked(Raises(), do) == status


def test_a_reward_is_posted() -> None:
    async def do(server: Server) -> Any:
        assert (await server.post("/reward", {"reward": 0.5, "why": "good"})).status_code == 200
        for wrong in (
            {"nothing": 1},
            {"reward": {}},
            {"reward": "0.5"},
            {"score": float("nan")},
            {"reward": 1, "std": 2},
        ):
            assert (await server.post("/reward", wrong)).status_code == 400
        return server.session.reward

    assert asked(Script(), do) == {"reward": 0.5, "why": "good"}


def test_the_models_are_listed() -> None:
    async def do(server: Server) -> list[str]:
        return [model.id async for model in server.openai.models.list()]

    assert asked(Script(), do) == ["policy"]


class Always:
    """A policy that says one thing."""

    async def generate(self, ask: Ask) -> Sampled:
        return Sampled([*TEMPLATE.tokenizer("ok", add_special_tokens=False).input_ids, TEMPLATE.end], None, "stop", 0)


LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
ANYTHING = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3))
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "developer", ""])
KINDS = st.sampled_from(["text", "image", "tool_use", "tool_result"])
PARTS = ANYTHING | st.fixed_dictionaries({"type": KINDS}, optional={
    "text": ANYTHING, "id": ANYTHING, "name": ANYTHING, "input": ANYTHING, "content": ANYTHING, "tool_use_id": ANYTHING,
})  # fmt: skip
MESSAGES = st.fixed_dictionaries({"role": ROLES | ANYTHING}, optional={
    "content": st.text(max_size=9) | ANYTHING | st.lists(PARTS, max_size=2), "tool_calls": ANYTHING | st.just(CALLS),
    "tool_call_id": ANYTHING, "name": ANYTHING, "reasoning_content": ANYTHING,
})  # fmt: skip


def bodies(request: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Of its fields, each right, nearly right or anything."""
    fields = {name: ANYTHING for name in request.model_fields}
    fields["messages"] = st.lists(MESSAGES, min_size=1, max_size=3) | ANYTHING
    fields["tools"] = st.just(TOOLS) | st.lists(st.just(TOOLS[0]) | ANYTHING, max_size=2) | ANYTHING
    fields |= {name: st.just(False) | ANYTHING for name in ("stream",)}
    fields |= {name: st.just(5) | ANYTHING for name in ("max_tokens", "max_completion_tokens")}
    return st.fixed_dictionaries({"messages": fields.pop("messages")}, optional=fields)


@given(
    st.one_of(
        st.tuples(st.just("chat/completions"), bodies(ChatRequest)),
        st.tuples(st.just("messages"), bodies(MessagesRequest)),
        st.tuples(st.sampled_from(["reward", "messages", "chat/completions"]), ANYTHING),
    )
)
@settings(max_examples=150, deadline=None)
def test_whatever_is_asked_is_answered_or_refused_in_openais_form(request: tuple[str, Any]) -> None:
    """Never an error of ours (500), and never a reply to what could not be read."""
    path, body = request

    async def scenario() -> httpx.Response:
        gateway = Gateway()
        gateway._listening.close()
        gateway._sessions["s"] = Session(Always(), TEMPLATE, 1.0, lambda said: None)
        transport = httpx.ASGITransport(app=gateway.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            headers = {"authorization": f"Bearer {gateway.token}"}
            return await client.post(f"/s/s/v1/{path}", content=json.dumps(body).encode(), headers=headers)

    response = asyncio.run(scenario())
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        error = response.json()["error"]
        assert error["message"]
        assert error["type"] == "invalid_request_error"
