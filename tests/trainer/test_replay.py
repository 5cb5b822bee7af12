"""Past trajectories among new ones: which, how often, and the same again after a restart."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_learner import groups
from test_objective import make

from asyncrl.rollout.trajectory import Group, Trajectory
from asyncrl.trainer.replay import Replay


def group(row: int, *members: tuple[int, float | None], version: int = 0) -> Group:
    """Members as (their only sampled token, reward)."""
    made = (
        Trajectory(
            tokens=np.array([1, token], np.int32),
            versions=np.array([-1, version], np.int32),
            logprobs=np.zeros(2, np.float32),
            loss_mask=np.array([False, reward is not None]),
            reward=reward,
            finish_reason="stop",
        )
        for token, reward in members
    )
    return Group(row, 0, row, tuple(made))


def tokens(group: Group) -> list[int]:
    return [int(t.tokens[1]) for t in group.trajectories]


def test_the_first_batch_of_a_task_has_no_past() -> None:
    replay = Replay(share=0.99, capacity=9, seed=0)
    mixed, replayed = replay.mix([group(0, (5, 1.0), (6, 0.0)), group(1, (7, 1.0))], step=0)
    assert [tokens(g) for g in mixed] == [[5, 6], [7]]
    assert replayed == [[False, False], [False]]


def test_past_members_come_by_chance_from_the_same_row_and_by_reward() -> None:
    replay = Replay(share=0.25, capacity=9, seed=0)
    replay.mix([group(0, (5, 0.0), (6, 1.0), (7, None)), group(1, (8, 1.0))], step=0)
    drawn: Counter[int] = Counter()
    for step in range(1, 4001):
        fresh = group(0, (5, 0.0), (6, 1.0), version=step)
        [mixed], [replayed] = replay.mix([fresh], step)
        for old, new, past in zip(tokens(mixed), tokens(fresh), replayed, strict=True):
            drawn[old if past else -1] += 1
            assert past or old == new
    assert drawn[-1] / drawn.total() == pytest.approx(0.75, abs=0.02)
    assert set(drawn) == {-1, 5, 6}
    assert drawn[6] / drawn[5] == pytest.approx(np.e, rel=0.15)


def test_duplicates_are_replaced_by_the_newest_and_the_oldest_goes_first() -> None:
    replay = Replay(share=0.99, capacity=2, seed=0)
    replay.mix([group(0, (5, 1.0), (6, 1.0), (5, 1.0))], step=0)
    replay.mix([group(0, (5, 1.0), version=1)], step=1)
    kept = replay._rows[0].values()
    assert [(int(t.tokens[1]), int(t.versions[1])) for t in kept] == [(6, 0), (5, 1)]
    replay.mix([group(0, (9, 1.0), version=2)], step=2)
    assert [int(t.tokens[1]) for t in replay._rows[0].values()] == [5, 9]


def test_restored_it_draws_the_same() -> None:
    whole, resumed = (Replay(share=0.5, capacity=9, seed=3) for _ in range(2))
    whole.mix([group(0, (5, 0.0), (6, 1.0)), group(4, (8, None))], step=0)
    resumed.restore(whole.state())
    for step in range(1, 30):
        batch = [group(0, (step, 0.5), (6, 1.0), version=step)]
        (ours, past), (theirs, same) = whole.mix(batch, step), resumed.mix(batch, step)
        assert [tokens(g) for g in ours] == [tokens(g) for g in theirs]
        assert past == same
    assert Replay(0.5, 9, 0).state() == {}


def test_replayed_tokens_may_be_older_than_the_bound_and_are_reported(tiny_model: Path) -> None:
    """I1 holds for the new ones: `staleness` counts them alone."""
    learner = make(tiny_model, {"replay_share": 0.9})
    rewards = [[1.0, 0.0, 0.5, 0.25]] * 2
    assert "replay/share" not in learner.step(groups(1, rewards), 0, 0).metrics
    report = learner.step(groups(1, rewards, version=7), 7, 7)
    assert report.metrics["replay/age_max"] == 7
    assert 0.3 < report.metrics["replay/share"] <= 1
    assert len(report.staleness) == 1
