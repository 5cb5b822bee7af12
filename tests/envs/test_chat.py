"""A conversation over a policy: prompts that go on, tools, and where it stops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from chats import THINKING, tokenizer

from asyncrl.envs.chat import Chat
from asyncrl.envs.environment import Ask, ContextFull, Sampled
from asyncrl.envs.template import Template
from asyncrl.envs.tools import Toolbox

USER = {"role": "user", "content": "what is 2 + 3?"}
TEMPLATE = Template(tokenizer(THINKING, "<|im_end|>"))


def add(a: int, b: int) -> int:
    """Adds."""
    CALLED.append((a, b))
    return a + b


CALLED: list[tuple[int, int]] = []
CALL = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'


class Script:
    """Answers with these texts, then has no room."""

    def __init__(self, *texts: str, reasons: dict[int, str] | None = None) -> None:
        self.texts, self.reasons, self.asks = texts, reasons or {}, []

    async def generate(self, ask: Ask) -> Sampled:
        number = len(self.asks)
        if number == len(self.texts):
            raise ContextFull("full")
        self.asks.append(ask)
        reason = self.reasons.get(number, "stop")
        tokens = [t for c in self.texts[number] for t in TEMPLATE.tokenizer(c, add_special_tokens=False).input_ids]
        return Sampled([*tokens, *([TEMPLATE.end] if reason == "stop" else [])], None, reason, 0)


def chat(script: Script, **more: Any) -> Chat:
    CALLED.clear()
    return Chat(script, TEMPLATE, [USER], Toolbox([add], 1.0), **more)


def text(ask: Ask) -> str:
    return TEMPLATE.tokenizer.decode(ask.tokens)


def test_tools_are_called_until_a_turn_asks_for_none() -> None:
    script = Script(CALL, CALL, "5")
    reply = asyncio.run(chat(script).run_tools())
    assert (reply.text, reply.finish_reason, CALLED) == ("5", "stop", [(2, 3)] * 2)
    first, second, third = script.asks
    assert second.tokens[: len(first.tokens)] == first.tokens
    assert third.tokens[: len(second.tokens)] == second.tokens
    assert text(third).count("<tool_response>5</tool_response>") == 2
    assert text(first).count('"name": "add"') == 1, "the tools are in the first message"
    assert all(ask.stop_token_ids == TEMPLATE.stop_token_ids for ask in script.asks)


def test_a_turn_that_was_cut_off_calls_nothing() -> None:
    script = Script(CALL, reasons={0: "length"})
    reply = asyncio.run(chat(script).run_tools())
    assert (reply.finish_reason, reply.tool_calls, CALLED) == ("length", [], [])


def test_a_bad_call_is_answered_and_the_episode_goes_on() -> None:
    script = Script('<tool_call>{"name": "add", "arguments": {"a": 1,</tool_call>', CALL, "5")
    reply = asyncio.run(chat(script).run_tools())
    assert reply.text == "5"
    assert "Error: the call is no JSON" in text(script.asks[1])
    assert CALLED == [(2, 3)]


@pytest.mark.parametrize(("texts", "most"), [((CALL,), None), ((CALL, CALL, CALL), 1)])
def test_without_room_or_turns_the_last_reply_is_cut_off(texts: tuple[str, ...], most: int | None) -> None:
    reply = asyncio.run(chat(Script(*texts)).run_tools(max_turns=most))
    assert (reply.finish_reason, len(CALLED)) == ("length", 1)


def test_a_plain_text_is_the_users_and_limits_go_to_the_policy() -> None:
    script = Script("yes", "no")

    async def talk() -> None:
        one = chat(script, train=False)
        await one.reply(max_new_tokens=7, stop=["."])
        one.add("and now?")
        await one.reply()

    asyncio.run(talk())
    first, second = script.asks
    assert (first.max_new_tokens, first.stop, first.train) == (7, (".",), False)
    assert text(second).endswith("yes<|im_end|>\n<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n")


def test_a_fork_goes_on_by_itself() -> None:
    script = Script("yes", "left", "right")

    async def talk() -> None:
        one = chat(script)
        await one.reply()
        other = one.fork()
        one.add("left?")
        other.add("right?")
        await one.reply()
        await other.reply()

    asyncio.run(talk())
    _, left, right = script.asks
    assert text(left).endswith("user\nleft?<|im_end|>\n<|im_start|>assistant\n")
    assert text(right).endswith("yes<|im_end|>\n<|im_start|>user\nright?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("change", ["replaced", "edited", "inserted"])
def test_a_history_that_someone_changes_begins_another_sequence(change: str) -> None:
    script = Script("yes", "no")

    async def talk() -> None:
        one = chat(script)
        await one.reply()
        if change == "replaced":
            one.messages = [{"role": "user", "content": "SUMMARY"}]
        elif change == "edited":
            one.messages[0]["content"] = "SUMMARY"
        else:
            one.messages.insert(1, {"role": "user", "content": "SUMMARY"})
        one.add("and now?")
        await one.reply()

    asyncio.run(talk())
    last = text(script.asks[1])
    assert last.count("SUMMARY") == last.count("and now?") == 1
    assert last.count("yes") == (change != "replaced")


def test_one_text_that_stops_is_one() -> None:
    script = Script("yes")
    asyncio.run(chat(script).reply(stop="END"))
    assert script.asks[0].stop == ("END",)


def test_dropped_thoughts_begin_another_sequence_that_has_all_that_was_said() -> None:
    script = Script("<think>\nhm\n</think>\n\nyes", "no")

    async def talk() -> None:
        one = chat(script)
        await one.reply()
        one.add("the feedback")
        await one.reply()

    asyncio.run(talk())
    first, second = script.asks
    assert second.tokens[: len(first.tokens) + 1] != [*first.tokens, script.asks[0].tokens[0]]
    assert "hm" not in text(second)
    assert "yes<|im_end|>\n<|im_start|>user\nthe feedback" in text(second)
