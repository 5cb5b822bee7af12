"""A turn that is written in pieces, with what is read in between; and the environments that are made of it, in a real
process."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import LIMITS, TOKENIZER, Script, ScriptedPolicy, run, spans, trained

from asyncrl.envs.environment import Ask, Episode, Sampled
from asyncrl.envs.pool import EnvPool, EnvSettings
from asyncrl.envs.transcript import Transcript, rests
from asyncrl.envs.wire import Load
from asyncrl.models import load_tokenizer
from asyncrl.task import Task

RECIPES = Path(__file__).parents[2] / "recipes"


def written(script: Script, *stop: str, limits: Any = LIMITS, chunk_tokens: int | None = None) -> Transcript:
    async def scenario() -> Transcript:
        transcript = ScriptedPolicy(script, limits).transcript()
        await transcript.write(stop, chunk_tokens)
        return transcript

    return run(scenario())[0]


def test_it_stops_at_a_text_or_at_the_end_of_the_turn() -> None:
    script = Script.of(("one<x>two<y>three", 1.0))
    first = written(script, "<x>", "<y>")
    assert (first.text, first.ended) == ("one<x>", False)
    whole = written(script, "<z>")
    assert (whole.text, whole.ended) == ("one<x>two<y>three", True)
    short = written(script, "<x>", chunk_tokens=2)
    assert (short.text, short.ended) == ("on", False)


def test_a_text_of_the_recipe_ends_the_turn() -> None:
    ended = written(Script.of(("one<x>two", 1.0)), "<y>", limits=replace(LIMITS, stop=("<x>",)))
    assert (ended.text, ended.ended) == ("one<x>", True)


@given(st.lists(st.integers(1, 30)), st.lists(st.integers(1, 4), min_size=40, max_size=40))
def test_a_mark_is_found_wherever_tokens_and_chunks_end(cuts: list[int], chunks: list[int]) -> None:
    text = "so <x><yy> no <x>é[TRAP][TRAP]x<yy>"
    marks = ("<x>", "<yy>", "[TRAP]")
    script = Script.of((text, 0.0), cuts=cuts)

    async def scenario() -> None:
        transcript, sizes, found = ScriptedPolicy(script).transcript(), iter(chunks), []
        while not transcript.ended:
            await transcript.write(marks, next(sizes, None))
            assert sum(transcript.text.count(mark) for mark in marks) <= 1
            if mark := next((m for m in marks if m in transcript.text), None):
                found.append(mark)
                transcript.take(transcript.text.index(mark) + len(mark))
        assert found == ["<x>", "<yy>", "<x>", "[TRAP]", "[TRAP]", "<yy>"]

    run(scenario())


def test_what_is_read_is_text_and_not_trained() -> None:
    async def scenario() -> ScriptedPolicy:
        policy = ScriptedPolicy(Script.of(("one<x>two", 1.0)))
        transcript = policy.transcript()
        await transcript.write(["<x>"])
        transcript.read("<|im_end|>[")
        assert transcript.text == ""
        await transcript.write(["<x>"])
        assert (transcript.text, transcript.written) == ("two", "one<x>two")
        return policy

    policy, _ = run(scenario())
    (one,) = policy.trajectories
    assert spans(one) == [(True, "one<x>"), (False, "<|im_end|>["), (True, "two</s>")]
    assert one.tokens.tolist().count(TOKENIZER.convert_tokens_to_ids("<|im_end|>")) == 1, "of the question alone"
    assert len(trained(one)) == 10


def test_rests_are_what_is_missing_of_a_mark() -> None:
    assert rests("so [TR", ("[TRAP]", "[END]")) == ["AP]"]
    assert rests("[[", ("[TRAP]", "[END]")) == ["TRAP]", "END]"]
    assert rests("aab", ("aabaabx",)) == ["aabx"]
    assert rests("[END]", ("[END]",)) == []
    assert rests("", ("[END]",)) == []


class Says:
    """A policy of the generator that goes on with a text of its own for each prompt, by a part of it."""

    def __init__(self, model: Path, texts: dict[str, str]) -> None:
        self.tokenizer, self.texts, self.done = load_tokenizer(str(model)), texts, dict.fromkeys(texts, 0)

    async def generate(self, ask: Ask) -> Sampled:
        prompt = self.tokenizer.decode(ask.tokens)
        question = next(text for text in self.texts if text in prompt)
        left = self.texts[question][self.done[question] :]
        ends = [left.find(stop) + len(stop) for stop in ask.stop if stop in left]
        tokens = self.tokenizer(left[: min(ends, default=len(left))], add_special_tokens=False).input_ids
        tokens = tokens[: ask.max_new_tokens]
        self.done[question] += len(self.tokenizer.decode(tokens))
        reason = "length" if len(tokens) == ask.max_new_tokens else "stop"
        return Sampled(tokens or [self.tokenizer.eos_token_id], None, reason, 0)


CALLS = "[CALL] x [HEAD] multiply(12, 10) [END][CALL] y [HEAD] multiply(30, 4) [END][TRAP]x = 120, y = 120"
FORKS = "<FORK1>2 + 3</FORK1><FORK2>4 + 6</FORK2><JOIN1> <JOIN2>5 + 10 = 15"


@pytest.mark.parametrize(
    ("spec", "row", "texts"),
    [
        (
            "./async_tools_env.py:rollout",
            {"metadata": {"expression": "12 * 10 * 30 * 4"}},
            {"x = 12 * 10, y = 30 * 4": CALLS},
        ),
        (
            "./fork_join_env.py:rollout",
            {"metadata": {"expression": "2 + 3 + 4 + 6"}, "answer": "15"},
            {"Fork the two halves": FORKS, "2 + 3": "2 + 3 = 5", "4 + 6": "4 + 6 = 10"},
        ),
    ],
)
def test_the_recipes_run_in_a_process(spec: str, row: dict[str, Any], texts: dict[str, str], tiny_model: Path) -> None:
    async def scenario() -> Episode:
        pool = EnvPool(EnvSettings(Load(spec, RECIPES, {}, str(tiny_model), {}, 5.0), 1, 60.0, 1.0))
        try:
            await pool.start()
            return await pool.rollout(Task(0, 0, "", row), [1], Says(tiny_model, texts), "0.0.0")
        finally:
            await pool.close()

    episode = asyncio.run(scenario())
    assert episode.score is not None
    assert (episode.score.error, episode.score.reward, episode.finish_reason) == (None, 1.0, "stop")
