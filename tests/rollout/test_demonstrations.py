"""Rows with answers as groups: what is learnt, by which version, at which reward."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from asyncrl.data.prompts import BadPrompt
from asyncrl.models import tiny_tokenizer
from asyncrl.rollout.demonstrations import NoEngine, RowRunner
from asyncrl.rollout.engine import EngineConfig
from asyncrl.rollout.summary import summarise
from asyncrl.rollout.trajectory import Group, decode, encode
from asyncrl.task import Task
from asyncrl.weights.update import WeightUpdate


def run(*answers: str, version: int = 0, max_tokens: int = 99) -> tuple[Group, list[str]]:
    async def whole() -> Any:
        engine = NoEngine(EngineConfig("x", "float32", "none", max_tokens, "keep", "0", 1.0, 0))
        await engine.start()
        await engine.update_weights(WeightUpdate(version))
        runner = RowRunner(engine, tiny_tokenizer(), max_tokens)
        return await runner.run(Task(7, 3, "ab", {}, answers=answers), 1)

    finished = asyncio.run(whole())
    return finished.group, finished.texts


def test_a_demonstration_is_a_group_of_one_whose_answer_is_learnt_up_to_its_end() -> None:
    group, texts = run("cde", version=4)
    assert (group.task, group.attempt, group.row) == (7, 1, 3)
    [t] = group.trajectories
    assert t.loss_mask.tolist() == [False] * (len(t.tokens) - 4) + [True] * 4
    assert t.tokens[-1] == tiny_tokenizer().eos_token_id
    assert t.versions.tolist() == np.where(t.loss_mask, 4, -1).tolist()
    assert np.isnan(t.logprobs[t.loss_mask]).all()
    assert (t.reward, t.finish_reason, group.version_range) == (1.0, "stop", (4, 4))
    assert texts == ["cde</s>"]
    [same] = decode(encode(group)).trajectories
    assert (same.tokens.tolist(), same.member) == (t.tokens.tolist(), 0)
    summary = summarise(group)
    assert (summary.outcome, summary.num_tokens, summary.num_turns) == ("finished", 4, 1)


def test_a_pair_is_a_group_of_two_the_chosen_first() -> None:
    group, texts = run("c", "de")
    assert [t.reward for t in group.trajectories] == [1.0, 0.0]
    assert group.members == [[0], [1]]
    assert texts == ["c</s>", "de</s>"]


def test_a_row_over_the_limit_is_no_group() -> None:
    with pytest.raises(BadPrompt, match="tokens with its answer") as caught:
        run("c" * 20, max_tokens=10)
    assert caught.value.reason == "row_too_long"
