"""The gap of each token of the sampled trajectories, against an unmodified model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_learner import groups, learner, recipe
from transformers import AutoModelForCausalLM

from asyncrl.rollout.trajectory import Trajectory


def plain_gaps(model: Path, t: Trajectory, temperature: float) -> list[float]:
    """Of the completion's tokens."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    ids = torch.tensor(t.tokens, dtype=torch.int64)
    with torch.no_grad():
        logits = reference(input_ids=ids[None]).logits[0] / temperature
    logp = torch.log_softmax(logits[:-1], -1).gather(-1, ids[1:, None])[:, 0]
    return (logp - torch.tensor(t.logprobs[1:])).abs()[t.prompt_length - 1 :].tolist()


@pytest.mark.parametrize("trainer", [{}, {"epochs": 2}, {"tokens_per_microbatch": 4096}])
def test_gaps_are_those_of_a_plain_model(tiny_model: Path, trainer: dict[str, int]) -> None:
    """Of the first trajectories of the first two groups, at the weights before the step, whatever the micro-batches."""
    batch = groups(1, [[1.0, 0.0, 0.25], [0.0, 1.0], [1.0, 0.0]])
    r = recipe(trainer={"precision": "fp32", "tokens_per_microbatch": 80, **trainer})
    found = learner(tiny_model, r).step(batch, 0, 0).gaps
    assert sorted(found) == [0, 1]
    for number, gaps in found.items():
        t = batch[number].trajectories[0]
        assert gaps == pytest.approx(plain_gaps(tiny_model, t, r.rollout.temperature), abs=2e-4)


def test_tokens_that_are_not_trained_have_none(tiny_model: Path) -> None:
    batch = groups(2, [[1.0, 0.0]], version=1)
    first = batch[0].trajectories[0]
    first.versions[first.prompt_length] = 0  # too old: on_stale mask leaves it out
    first.logprobs[-1] = np.nan  # the engine gave none
    gaps = learner(tiny_model, recipe(on_stale="mask")).step(batch, 2, 1).gaps[0]
    assert len(gaps) == len(first.tokens) - first.prompt_length
    assert [place for place, gap in enumerate(gaps) if gap is None] == [0, len(gaps) - 1]


def test_what_does_not_pass_the_model_has_no_gaps(tiny_model: Path) -> None:
    """Equal rewards: no advantage. And a failed reward."""
    batch = groups(3, [[1.0, 1.0], [None, 1.0, 0.0]])
    assert learner(tiny_model).step(batch, 0, 0).gaps == {}


def test_a_past_trajectory_does_not_stand_for_the_new_one(tiny_model: Path) -> None:
    ours = learner(tiny_model, recipe(algorithm={"replay_share": 0.999}))
    assert sorted(ours.step(groups(4, [[1.0, 0.0], [0.0, 1.0]]), 0, 0).gaps) == [0, 1]
    # Every new one gives way to a past one of its row.
    assert ours.step(groups(5, [[1.0, 0.0], [0.0, 1.0]]), 1, 0).gaps == {}
