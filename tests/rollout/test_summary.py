"""What becomes of a group that ran to its end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from asyncrl.rollout.summary import summarise
from asyncrl.rollout.trajectory import Group, Trajectory


def group(*rewards: float | None) -> Group:
    versions = np.array([-1, 3, 3], np.int32)
    members = (
        Trajectory(
            tokens=np.arange(3, dtype=np.int32),
            versions=versions,
            logprobs=np.zeros(3, np.float32),
            loss_mask=(versions >= 0) & (reward is not None),
            reward=reward,
            finish_reason="length" if reward == 0.0 else "stop",
        )
        for reward in rewards
    )
    return Group(7, 0, 7, tuple(members))


@pytest.mark.parametrize(
    ("rewards", "outcome", "reason"),
    [
        ((1.0, 1.0, 1.0), "filtered", "equal_rewards"),
        ((0.0, None, 0.0), "filtered", "equal_rewards"),
        ((0.5,), "filtered", "equal_rewards"),
        ((1.0, 1.0, 0.0), "finished", ""),
        ((None, 1.0, 0.0), "finished", ""),
        ((None, None), "failed", "reward"),
    ],
)
def test_dynamic_sampling_filters_groups_that_teach_nothing(
    rewards: tuple[float | None, ...], outcome: str, reason: str
) -> None:
    """I7: a failed reward is no reward; it makes no group equal and none unequal."""
    summary = summarise(group(*rewards), filter_equal_rewards=True)
    assert (summary.outcome, summary.reason) == (outcome, reason)
    assert summary.num_tokens == 2 * len(rewards)
    assert summary.num_truncated == rewards.count(0.0)
    assert summarise(group(*rewards)).outcome == ("failed" if outcome == "failed" else "finished")


def test_a_group_that_sampled_nothing_to_train_has_failed_and_says_why() -> None:
    """As of an environment that never asks the policy."""
    nothing = {"versions": np.full(3, -1, np.int32), "loss_mask": np.zeros(3, np.bool_)}
    members = tuple(replace(t, **nothing) for t in group(1.0, 1.0).trajectories)
    summary = summarise(Group(7, 0, 7, members))
    assert (summary.outcome, summary.reason) == ("failed", "no sampled token that could be trained")


def test_a_rollout_counts_once_and_its_turns_each() -> None:
    """Two sequences of one rollout, the first with two turns, and a rollout of one."""
    first, second, third = group(1.0, 1.0, 0.0).trajectories
    turns = np.array([-1, 3, -1, 4], np.int32)
    first = replace(first, tokens=np.arange(4, dtype=np.int32), versions=turns, loss_mask=turns >= 0, member=0)
    summary = summarise(Group(7, 0, 7, (first, replace(second, member=0), replace(third, member=1))))
    assert summary.rewards == [1.0, 0.0]
    assert (summary.num_turns, summary.num_sequences, summary.num_tokens) == (4, 3, 6)
    assert (summary.num_mixed, summary.num_truncated, summary.in_flight) == (1, 1, 0.5)


def test_the_rewards_of_a_group_are_those_of_the_agent_that_all_rollouts_have() -> None:
    """Whoever spoke first; and one whose judges alone differ teaches something."""
    first, second = group(1.0, 1.0).trajectories
    judges = (replace(first, agent="judge", reward=0.2), replace(second, agent="judge", reward=0.4))
    members = (
        replace(judges[0], member=0),
        replace(first, member=0),
        replace(second, member=1),
        replace(judges[1], member=1),
    )
    summary = summarise(Group(7, 0, 7, members), filter_equal_rewards=True)
    assert (summary.rewards, summary.outcome) == ([1.0, 1.0], "finished")
    alike = tuple(replace(t, reward=0.2) if t.agent else t for t in members)
    assert summarise(Group(7, 0, 7, alike), filter_equal_rewards=True).outcome == "filtered"
