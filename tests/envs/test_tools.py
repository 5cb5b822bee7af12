"""Tools: their schemas, and what the model reads of whatever goes wrong in them."""

from __future__ import annotations

import asyncio
import functools
import gc
import time
import weakref
from typing import Any, Literal

import pytest

from asyncrl.envs.environment import ToolUse
from asyncrl.envs.tool_calls import ToolCall
from asyncrl.envs.tools import Tool, Toolbox
from asyncrl.errors import UserError


def search(query: str, most: int = 3, where: Literal["web", "books"] = "web") -> list[str]:
    """Titles of what matches a query."""
    return [f"{query} {where} {i}" for i in range(most)]


async def wait_a_little(seconds: float) -> str:
    """Waits."""
    await asyncio.sleep(seconds)
    return "done"


def sleeps(seconds: float) -> str:
    """Waits in a thread."""
    time.sleep(seconds)
    return "done"


def fails() -> str:
    """Raises."""
    raise RuntimeError("the disk is full")


def long(n: int) -> str:
    """A long text."""
    return "😀" * n


BOX = Toolbox([search, wait_a_little, sleeps, fails, long], timeout_s=0.3)


def call(name: str, arguments: dict[str, Any], error: str = "") -> ToolCall:
    return ToolCall("call_0_0", name, arguments, error)


def answers(*calls: ToolCall) -> list[str]:
    return [message["content"] for message in asyncio.run(BOX.answer(calls))]


def leaves() -> str:
    """Exits."""
    raise SystemExit(1)


def odd_bytes() -> str:
    """A file name that is no UTF-8."""
    return b"caf\xe9".decode(errors="surrogateescape")


@functools.wraps(wait_a_little)
def wrapped(*args: Any, **kwargs: Any) -> Any:
    return wait_a_little(*args, **kwargs)


def test_tools_that_exit_or_are_wrapped_or_have_odd_texts() -> None:
    box = Toolbox([leaves, odd_bytes, wrapped], 1.0)
    calls = [call("leaves", {}), call("odd_bytes", {}), call("wait_a_little", {"seconds": 0.0})]
    said = [message["content"] for message in asyncio.run(box.answer(calls))]
    assert said[0].startswith("Error: SystemExit: 1")
    assert said[1:] == ["caf\\udce9", "done"]


def test_tools_of_one_episode_go_with_it() -> None:
    class Sandbox:
        def run(self, code: str) -> str:
            """Runs it."""
            return code

    sandbox = Sandbox()
    gone = weakref.ref(sandbox)
    Toolbox([sandbox.run], 1.0)
    del sandbox
    gc.collect()
    assert gone() is None


def test_the_schema_is_the_signature() -> None:
    schema = Tool(search, 1.0).schema
    assert schema == {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Titles of what matches a query.",
            "parameters": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "query": {"type": "string"},
                    "most": {"type": "integer", "default": 3},
                    "where": {"type": "string", "enum": ["web", "books"], "default": "web"},
                },
                "required": ["query"],
            },
        },
    }


def no_hint(a) -> None: ...


def any_number(*args: int) -> None: ...


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        ([no_hint], "parameter a has no type hint"),
        ([any_number], "parameter args has no name of its own"),
        ([lambda: 1], "has no name to be called by"),
        ([search, search], "two tools have one name"),
    ],
)
def test_what_is_no_tool_is_refused(functions: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Toolbox(functions, 1.0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (call("search", {"query": "cats", "most": 2}), '["cats web 0", "cats web 1"]'),
        (call("search", {}), "Error: wrong arguments for search: query: Field required"),
        (call("search", {"query": "a", "most": "many"}), "Error: wrong arguments for search: most: Input should be"),
        (call("search", {"query": "a", "colour": 1}), "Error: wrong arguments for search: colour: Extra inputs"),
        (call("nope", {}), "Error: there is no tool 'nope', only search, wait_a_little, sleeps, fails, long"),
        (call("", {}, "the call is no JSON"), "Error: the call is no JSON"),
        (call("fails", {}), "Error: RuntimeError: the disk is full (test_tools.py:"),
        (call("wait_a_little", {"seconds": 0.01}), "done"),
        (call("wait_a_little", {"seconds": 60}), "Error: wait_a_little took more than 0.3 s"),
        (call("sleeps", {"seconds": 1}), "Error: sleeps took more than 0.3 s"),
    ],
)
def test_what_the_model_reads(asked: ToolCall, said: str) -> None:
    (answer,) = answers(asked)
    assert answer.startswith(said)


def test_a_long_answer_is_cut_and_says_so() -> None:
    (answer,) = answers(call("long", {"n": 50_000}))
    assert answer.startswith("😀" * 10_000 + "\n[40000 more characters")


def test_calls_of_a_turn_run_side_by_side_and_are_answered_once_each_in_order() -> None:
    calls = [ToolCall(f"call_0_{i}", "wait_a_little", {"seconds": 0.2 - 0.02 * i}) for i in range(8)]
    calls.append(ToolCall("call_0_8", "nope", {}))
    began = time.monotonic()
    messages = asyncio.run(BOX.answer(calls))
    assert time.monotonic() - began < 1.0, "one after the other they take 1 s"
    assert [message["tool_call_id"] for message in messages] == [one.id for one in calls]
    assert {message["role"] for message in messages} == {"tool"}


def test_calls_are_counted_with_those_that_failed_and_their_time() -> None:
    use = ToolUse()
    box = Toolbox([search, wait_a_little, sleeps, fails, long], timeout_s=0.3, use=use)
    calls = [
        call("long", {"n": 1}),
        call("fails", {}),
        call("nope", {}),
        call("sleeps", {"seconds": 1.0}),
        call("long", {}, "no JSON"),
    ]
    asyncio.run(box.answer(calls))
    assert (use.calls, use.failed) == (5, 4)
    assert 0.25 < use.seconds < 3
