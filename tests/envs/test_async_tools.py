"""recipes/async_tools_env.py: calls run while the model writes; when their results are read, what is trained, what it
takes."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import async_tools_env
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import LIMITS, TOKENIZER, Script, ScriptedPolicy, run, spans, trained

from asyncrl.task import Task

TOKEN_S = 0.05
TOOL_TIMEOUT_S = 5.0


async def wait(seconds: float, note: str = "") -> str:
    """Takes its time."""
    await asyncio.sleep(seconds)
    return f"waited {seconds:g} s"


def played(
    script: Script, *tools: Callable[..., Any], chunk_tokens: int = 4, policy: ScriptedPolicy | None = None
) -> tuple[ScriptedPolicy, float]:
    """The policy with its record, and the seconds that it took."""
    policy = policy or ScriptedPolicy(script)

    async def scenario() -> ScriptedPolicy:
        toolbox = policy.toolbox(tools or (wait,), TOOL_TIMEOUT_S if tools else 1000.0)
        await async_tools_env.write_with_tools(policy.transcript(), toolbox, chunk_tokens)
        return policy

    return run(scenario())


def call(name: str, seconds: float, note: str = "") -> str:
    return f"[CALL] {name} [HEAD] wait({seconds!r}, {note!r}) [END]"


def drawn(rng: random.Random) -> list[tuple[float, str]]:
    """Seconds that each call takes, and its text; the longest first."""
    seconds = sorted((rng.uniform(1, 40) for _ in range(rng.randint(4, 8))), reverse=True)
    return [(s, call(f"c{i}", s, "x" * rng.randint(0, 60))) for i, s in enumerate(seconds)]


def writing_s(text: str) -> float:
    return len(TOKENIZER(text, add_special_tokens=False).input_ids) * TOKEN_S


def asynchronous_s(calls: list[tuple[float, str]]) -> float:
    """The paper's formula: max over f of E_f + the sum of G_g over all g with E_g >= E_f."""
    return max(e + sum(writing_s(text) for other, text in calls if other >= e) for e, _ in calls)


@pytest.mark.parametrize("seed", range(30))
def test_calls_take_as_long_as_the_formula_says(seed: int) -> None:
    rng = random.Random(seed)
    calls, chunk_tokens = drawn(rng), rng.randint(1, 20)
    texts = [text for _, text in calls]
    pieces = [(text, TOKEN_S) for text in texts]
    _, free_s = played(Script.of(*pieces, ("[TRAP]k", 0.0)), chunk_tokens=chunk_tokens)
    assert free_s == pytest.approx(asynchronous_s(calls))
    # What is written beside the calls is not in the formula.
    _, took_s = played(Script.of(*pieces, ("[TRAP]k", TOKEN_S)), chunk_tokens=chunk_tokens)
    assert took_s == pytest.approx(asynchronous_s(calls), rel=0.05)
    one_by_one = [piece for text in texts for piece in ((text, TOKEN_S), ("[TRAP]", 0.0))]
    policy, sequential_s = played(Script.of(*one_by_one), chunk_tokens=chunk_tokens)
    assert sequential_s == pytest.approx(sum(e + writing_s(text) for e, text in calls))
    assert sequential_s > took_s
    assert len(policy.trajectories) == 1


def test_a_result_is_read_where_the_model_is_when_it_is_there() -> None:
    prose = "Meanwhile I go on. "
    policy, took_s = played(Script.of((call("a", 1.0), 0.0), (prose * 5, 0.1), ("[TRAP]ok", 0.0)), chunk_tokens=3)
    (one,) = policy.trajectories
    written, read, rest = spans(one)
    assert read == (False, "\n[INTR] a [HEAD] waited 1 s [END]\n")
    behind = written[1].removeprefix(call("a", 1.0))
    assert 10 <= len(behind) <= 13
    assert behind + rest[1] == prose * 5 + "[TRAP]ok</s>"
    assert took_s == pytest.approx(len(prose) * 5 * 0.1)


def test_without_a_call_that_runs_nothing_is_cut_into_chunks() -> None:
    policy, _ = played(Script.of(("prose " * 50, 0.1)), chunk_tokens=1)
    assert policy.record._calls == 1


def test_chunks_are_one_turn() -> None:
    """Two turns: up to the result, and behind it."""
    script = Script.of((call("a", 1000.0) + "many words " * 20 + "[TRAP]ok", 0.01))
    policy, _ = played(script, chunk_tokens=1, policy=ScriptedPolicy(script, replace(LIMITS, max_turns=2)))
    assert policy.record._calls > 200
    assert [is_written for is_written, _ in spans(policy.trajectories[0])] == [True, False, True]
    policy, _ = played(script, policy=ScriptedPolicy(script, replace(LIMITS, max_turns=1)))
    assert [is_written for is_written, _ in spans(policy.trajectories[0])] == [True]


def test_a_turn_is_cut_off_at_its_longest_and_nothing_is_left() -> None:
    script = Script.of((call("a", 1000.0) + "many words " * 20, 0.01))
    policy = ScriptedPolicy(script, replace(LIMITS, max_new_tokens=100))
    _, took_s = played(script, chunk_tokens=7, policy=policy)
    assert took_s == pytest.approx(1.0)
    assert trained(policy.trajectories[0]) == script.tokens[:100]


def test_the_end_of_the_turn_cancels_what_runs() -> None:
    cancelled = []

    async def stay() -> str:
        """Does."""
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return ""

    policy, took_s = played(Script.of(("[CALL] a [HEAD] stay() [END]bye", 0.01)), stay)
    assert took_s < 1 < TOOL_TIMEOUT_S
    assert cancelled == [True]
    assert [is_written for is_written, _ in spans(policy.trajectories[0])] == [True]


def test_an_episode_that_is_cancelled_leaves_nothing() -> None:
    async def scenario() -> None:
        policy = ScriptedPolicy(Script.of((call("a", 50.0) + call("b", 50.0) + "words " * 100, 1.0)))
        writing = async_tools_env.write_with_tools(policy.transcript(), policy.toolbox([wait], 1000.0), 4)
        episode = asyncio.create_task(writing)
        await asyncio.sleep(120)
        assert len(asyncio.all_tasks()) > 2, "no call runs any more"
        episode.cancel()
        with pytest.raises(asyncio.CancelledError):
            await episode

    _, took_s = run(scenario())
    assert took_s == 120


@pytest.mark.parametrize("seconds", [0.35, 0.45, 0.55, 0.65])
def test_no_result_is_read_inside_of_a_character(seconds: float) -> None:
    policy, _ = played(Script.of((call("a", seconds), 0.0), ("é€" * 5, 0.1)), chunk_tokens=1)
    texts = [text for _, text in spans(policy.trajectories[0])]
    assert len(texts) == 3
    assert "\ufffd" not in "".join(texts)


def test_what_goes_wrong_with_a_call_is_read() -> None:
    async def fail() -> str:
        """Does."""
        raise KeyError("no such city")

    blocks = ["fail()", "wait(1000.0)", "wait()", "wait(1, 2, 3)", "gone(1)", "wait(", "1 + 1", "wait(x)", "wait(**{})"]
    text = "".join(f"[CALL] c{i} [HEAD] {block} [END]" for i, block in enumerate(blocks)) + "[CALL]?[END][TRAP]"
    policy, took_s = played(Script.of((text, 0.0)), fail, wait)
    read = "".join(text for is_written, text in spans(policy.trajectories[0]) if not is_written)
    said = dict(re.findall(r"\[INTR\] (\S+) \[HEAD\] (.*?) \[END\]", read))
    assert took_s == TOOL_TIMEOUT_S
    assert "no such city" in said["c0"]
    assert said["c1"] == "Error: wait took more than 5 s"
    assert "seconds: Field required" in said["c2"]
    assert said["c3"] == "Error: wait takes 2 arguments"
    assert said["c4"] == "Error: there is no tool 'gone', only fail, wait"
    assert said["c8"].startswith("Error: wrong arguments for wait")
    for name in ("c5", "c6", "c7", "?"):
        assert "is no call; write [HEAD] tool(1, 2)" in said[name]


def test_a_trap_inside_of_a_call_is_its_text() -> None:
    text = call("a", 3.0) + call("b", 1.0, "[TRAP]") + "[TRAP]"
    policy, took_s = played(Script.of((text, 0.0)))
    assert took_s == 3
    assert spans(policy.trajectories[0])[1][1].startswith("\n[INTR] b ")


def open_ends(text: str) -> bool:
    """By other means than the environment's: characters one by one."""
    inside, place = False, 0
    while place < len(text):
        mark = next((m for m in ("[CALL]", "[END]", "[TRAP]") if text.startswith(m, place)), None)
        if mark == "[CALL]":
            inside = True
        elif mark == "[END]":
            inside = False
        place += len(mark) if mark else 1
    tail = text[text.rfind("[") :] if "[" in text else ""
    begun = any(mark.startswith(tail) and tail not in (mark, "") for mark in ("[CALL]", "[END]", "[TRAP]"))
    return inside or begun or text.endswith("\ufffd")


SCRAPS = st.sampled_from(["so ", "[", "[CA", "[EN", "[TRAP", "é", "€", "]x", "hello", "[END]", "[]", "[[", "<s>"])
SECONDS = st.floats(0.01, 3.0).map(lambda s: round(s, 2))


@st.composite
def pieces(draw: st.DrawFn) -> list[str]:
    kinds = draw(st.lists(st.sampled_from(["scrap", "call", "trap", "open"]), max_size=12))
    made = []
    for number, kind in enumerate(kinds):
        scrap = "".join(draw(st.lists(SCRAPS, max_size=4)))
        texts = {"scrap": scrap, "call": call(f"c{number}", draw(SECONDS)), "trap": "[TRAP]", "open": "[CALL]" + scrap}
        made.append(texts[kind])
    return made


@settings(max_examples=300, deadline=None)
@given(pieces(), st.integers(1, 9), st.lists(st.integers(1, 200)), st.sampled_from([0.0, 0.01, 0.1]))
def test_whatever_the_model_writes(texts: list[str], chunk_tokens: int, cuts: list[int], token_s: float) -> None:
    """Sampled tokens are trained, each once and as they were, and no other is; results are read at places that are
    outside of calls, marks and characters, each once; no task is left (`run`)."""
    text = "".join(texts)
    script = Script.of((text, token_s), cuts=cuts)
    policy, _ = played(script, chunk_tokens=chunk_tokens)
    (one,) = policy.trajectories
    assert trained(one) == [*script.tokens, TOKENIZER.eos_token_id]
    found = spans(one)
    assert [is_written for is_written, _ in found] == [i % 2 == 0 for i in range(len(found))]
    for is_written, written in found[:-1]:
        assert not is_written or not open_ends(written), written
    read = "".join(text for is_written, text in found if not is_written)
    names = re.findall(r"\[INTR\] (c\d+) \[HEAD\] waited", read)
    assert len(names) == len(set(names))
    assert set(names) <= set(re.findall(r"\[CALL\] (c\d+) \[HEAD\]", text))


@settings(max_examples=100, deadline=None)
@given(st.lists(SECONDS, min_size=1, max_size=6), st.integers(1, 9), st.lists(st.integers(1, 200)))
def test_a_trap_waits_for_every_result(seconds: list[float], chunk_tokens: int, cuts: list[int]) -> None:
    text = "][".join(call(f"c{i}", s) for i, s in enumerate(seconds)) + "[TRAP]"
    policy, _ = played(Script.of((text, 0.01), ("done", 0.0), cuts=cuts), chunk_tokens=chunk_tokens)
    found = spans(policy.trajectories[0])
    read = "".join(text for is_written, text in found if not is_written)
    assert sorted(re.findall(r"\[INTR\] c(\d+)", read)) == [str(i) for i in range(len(seconds))]
    assert found[-1] == (True, "done</s>")


def rollouts(*texts: str) -> Iterator[tuple[dict[str, float], bool]]:
    for text in texts:
        policy = ScriptedPolicy(Script.of((text, 0.01)), replace(LIMITS, max_new_tokens=120))
        task = Task(0, 0, "", {"metadata": {"expression": "12 * 10 * 30 * 4"}})
        yield run(async_tools_env.rollout(task, policy))[0], policy.truncated


def test_the_recipe_scores_the_answer() -> None:
    calls = "[CALL] x [HEAD] multiply(12, 10) [END][CALL] y [HEAD] multiply(a=30, b=4) [END][TRAP]"
    answers = "x = 120, y = 120", "y = 120, x = 120, y = 7", "I do not know.", "x = 120, y = 120" + " so" * 200
    both, one, none, no_end, uncalled = rollouts(*(calls + answer for answer in answers), "x = 120, y = 120")
    (bit_by_bit,) = rollouts(
        calls.replace("[TRAP]", "[TRAP]x = 120, ") + "[CALL] z [HEAD] multiply() [END][TRAP]y = 120"
    )
    assert both == ({"reward": 1.0, "both_right": 1.0}, False)
    assert one == ({"reward": 0.75, "both_right": 0.0}, False)
    assert none == ({"reward": 0.5, "both_right": 0.0}, False)
    assert no_end == ({"reward": 0.5, "both_right": 0.0}, True)
    assert bit_by_bit == ({"reward": 1.0, "both_right": 1.0}, False)
    assert uncalled == ({"reward": 0.5, "both_right": 1.0}, False)
