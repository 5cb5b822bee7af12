"""What becomes of a group that ran to its end."""

from __future__ import annotations

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
