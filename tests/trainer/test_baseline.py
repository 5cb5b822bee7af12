"""Groups of one: what their rewards are compared with, and the same again after a restart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_learner import groups, of
from test_objective import make

from asyncrl.recipe.algorithm import PRESETS
from asyncrl.rollout.trajectory import Group
from asyncrl.trainer.baseline import Baseline


def alone(*rewards: float | None) -> list[Group]:
    """Groups of one, of the rows 0, 1, ..."""
    return [replace(group, row=i) for i, group in enumerate(groups(3, [[r] for r in rewards]))]


def advantages(learner, batch: list[Group]) -> list[float]:
    return [s.advantage for s in of(learner, batch)]


def test_the_batch_is_its_own_baseline_and_a_failed_reward_is_not_in_it(tiny_model: Path) -> None:
    found = advantages(make(tiny_model, PRESETS["flash_reinforce"]), alone(1.0, 0.0, None, 0.5, 0.1))
    assert found == pytest.approx([0.6, -0.4, 0.1, -0.3])


def test_a_task_is_compared_with_what_it_has_earned_before(tiny_model: Path) -> None:
    """By hand: n <- rho n + 1, v <- v + (R - v)/n, from the mean of the task's first batch with n = 1."""
    learner = make(tiny_model, {**PRESETS["spo"], "rho": 0.5})
    assert advantages(learner, alone(1.0, 0.0)) == pytest.approx([0.5, -0.5])
    # n = 1.5: v is 0.5 + 0.5/1.5 and 0.5 - 0.5/1.5; a new task begins at the batch's mean, 0.5.
    assert advantages(learner, alone(1.0, 0.0, 0.5)) == pytest.approx([1 / 6, -1 / 6, 0.0])
    # n = 1.75: 5/6 + (1 - 5/6)/1.75.
    assert advantages(learner, alone(0.0)) == pytest.approx([-(5 / 6 + 1 / 6 / 1.75)])


def test_a_reward_is_no_part_of_its_own_baseline() -> None:
    one, other = (Baseline("task", 0.9) for _ in range(2))
    for baseline in (one, other):
        baseline.of_batch([(7, "", torch.tensor([0.25])), (8, "", torch.tensor([0.75]))])
    assert one.of_batch([(7, "", torch.tensor([1.0]))]) == other.of_batch([(7, "", torch.tensor([-9.0]))])


def test_each_agent_has_its_own() -> None:
    scored = [(0, "solver", torch.tensor([1.0])), (0, "critic", torch.tensor([3.0]))]
    for kind in ("batch", "task"):
        assert Baseline(kind, 0.9).of_batch(scored) == [1.0, 3.0]


def test_restored_it_goes_on_bit_for_bit() -> None:
    whole, resumed = (Baseline("task", 0.9) for _ in range(2))
    assert whole.state() == {}
    for step in range(5):
        whole.of_batch([(row, agent, torch.rand(2)) for row in (step, 2**40, 3) for agent in ("", "other")])
    resumed.restore({name: tensor.clone() for name, tensor in whole.state().items()})
    batch = [(row, agent, torch.rand(3)) for row in range(6) for agent in ("other", "")]
    assert whole.of_batch(batch) == resumed.of_batch(batch)
    theirs = resumed.state()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in whole.state().items())
    resumed.restore({})
    assert resumed.state() == {}
