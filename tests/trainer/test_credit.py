"""Rewards and advantages of turns, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_learner import groups, learner, of, recipe

from asyncrl.rollout.trajectory import Group, Trajectory, decode, encode
from asyncrl.trainer.credit import of_episodes, of_turns

MASK = np.array([0, 1, 1, 0, 1, 0, 1, 1], np.bool_)


def trajectory(*turns: tuple[int, int, float], mask: np.ndarray = MASK, reward: float = 0.0) -> Trajectory:
    num = len(mask)
    tokens, versions = np.arange(num, dtype=np.int32), np.where(mask, 0, -1).astype(np.int32)
    return Trajectory(tokens, versions, np.zeros(num, np.float32), mask, reward, "stop", turns=turns)


def centred(rewards: torch.Tensor, extras: Sequence[Mapping[str, float]]) -> tuple[list[int], torch.Tensor]:
    assert len(rewards) == len(extras)
    return list(range(len(rewards))), rewards - rewards.mean()


def told(found: dict[int, list], i: int) -> list[tuple[int, int, int, float, float]]:
    return [(p.place, p.start, p.end, p.reward, pytest.approx(p.advantage)) for p in found[i]]


def test_each_turn_is_compared_by_what_was_earned_from_there_on() -> None:
    """3 = 1 + 0 + 1 and 1 that no turn has earned; 2 = 2 + 0, of two turns."""
    first = [trajectory((0, 3, 1.0), (1, 5, 0.0), (2, 8, 1.0))]
    second = [trajectory((0, 3, 2.0), (1, 8, 0.0))]
    found = of_turns([first, second], torch.tensor([3.0, 2.0]), centred)
    assert told(found, 0) == [(0, 0, 3, 3.0, 0.5), (0, 3, 5, 2.0, 1.0), (0, 5, 8, 2.0, 0.0)]
    assert told(found, 1) == [(0, 0, 3, 2.0, -0.5), (0, 3, 8, 0.0, -1.0)]


def test_turns_of_several_sequences_are_in_the_order_in_which_they_ended() -> None:
    branches = [trajectory((0, 3, 0.0), (2, 5, 5.0)), trajectory((1, 3, 1.0))]
    found = of_turns([branches], torch.tensor([6.0]), centred)
    assert [(p.place, p.end, p.reward, p.advantage) for p in found[0]] == [
        (0, 3, 6.0, 0.0), (1, 3, 6.0, 0.0), (0, 5, 5.0, 0.0),
    ]  # fmt: skip


def test_turns_without_rewards_are_the_runs_of_trained_tokens() -> None:
    found = of_turns([[trajectory()], [trajectory((0, 3, 1.0), (1, 8, 0.0))]], torch.tensor([1.0, 1.0]), centred)
    assert [(p.start, p.end, p.reward) for p in found[0]] == [(0, 3, 1.0), (3, 5, 1.0), (5, 8, 1.0)]
    assert [p.reward for p in found[1]] == [1.0, 0.0]


def test_episodes_are_one_part_of_each_trajectory() -> None:
    found = of_episodes([[trajectory(), trajectory()], [trajectory()]], torch.tensor([1.0, 0.0]), centred)
    assert told(found, 0) == [(0, 0, 8, 1.0, 0.5), (1, 0, 8, 1.0, 0.5)]


def with_turns(group: Group) -> Group:
    """Each completion as two turns, cut in the middle, of which the first has earned all."""
    made = []
    for t in group.trajectories:
        num, cut = len(t.tokens), (t.prompt_length + len(t.tokens)) // 2
        made.append(replace(t, turns=((0, cut, t.reward or 0.0), (1, num, 0.0))))
    return replace(group, trajectories=tuple(made))


def test_a_step_gives_each_turn_its_own_advantage(tiny_model: Path) -> None:
    batch = [decode(encode(with_turns(group))) for group in groups(3, [[1.0, 0.0, 0.5]])]
    ours = learner(tiny_model, recipe(algorithm={"credit": "turn", "advantage": "dr_grpo"}))
    samples = of(ours, batch)
    by_turn = {(s.reward, int(s.mask.argmax())): s.advantage for s in samples if s.advantage}
    assert sorted(by_turn.values()) == pytest.approx([-0.5, 0.5]), "the second turns have earned nothing, all alike"
    trained = sum(s.mask.astype(int) for s in samples if s.trajectory is batch[0].trajectories[0])
    assert trained.tolist() == batch[0].trajectories[0].loss_mask.astype(int).tolist(), "each token once"
    assert sum(s.share for s in samples) == pytest.approx(3)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_turns_that_are_all_alike_have_the_gradient_of_the_episode(tiny_model: Path, aggregation: str) -> None:
    """Where the last turn earns all, every turn has the episode's advantage."""
    gradients = []
    for credit in ("episode", "turn"):
        batch = [with_turns(group) for group in groups(3, [[1.0, 0.0, 0.5]])]
        last = [
            replace(t, turns=tuple((n, end, (t.reward or 0.0) * (n == 1)) for n, end, _ in t.turns))
            for t in batch[0].trajectories
        ]
        ours = learner(tiny_model, recipe(algorithm={"credit": credit, "aggregation": aggregation}))
        ours.step([replace(batch[0], trajectories=tuple(last))], 0, 0)
        gradients.append([parameter.grad for parameter in ours.model.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
