"""The budgets: what counts, what starts the count again, and what the error says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.errors import BudgetSpent
from asyncrl.orchestrator.budget import Budget
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.summary import GroupSummary
from asyncrl.trainer.backend import StepReport


def budget(
    groups: int = 16, rewards: int = 1000, steps: int = 5, groups_per_step: int = 1, filtered: int = 1000
) -> Budget:
    values = {
        "model": "x",
        "data": {"path": "x"},
        "reward": "x",
        "max_steps": 9,
        "groups_per_step": groups_per_step,
        "budgets": {
            "max_consecutive_failed_groups": groups,
            "max_consecutive_filtered_groups": filtered,
            "max_consecutive_reward_failures": rewards,
            "max_consecutive_skipped_steps": steps,
        },
    }
    return Budget(Recipe.model_validate(values))


def group(outcome: str, reason: str = "", rewards: list[float | None] | None = None) -> GroupSummary:
    rewards = rewards or []
    errors = [f"error {i}" for i, reward in enumerate(rewards) if reward is None]
    return GroupSummary(0, 0, outcome, reason, rewards=rewards, errors=errors)


def step(skipped: bool) -> StepReport:
    return StepReport({"trainer/skipped_steps": float(skipped)}, 1, 1, (1,))


def spent_at(tell: list[object], limit: int, counts: list[bool]) -> None:
    """Each call of `tell` raises exactly where the run of True before it, itself included, reaches the limit."""
    in_a_row = 0
    for call, counted in zip(tell, counts, strict=True):
        in_a_row = in_a_row + 1 if counted else 0
        if in_a_row >= limit:
            with pytest.raises(BudgetSpent, match=rf"the last {in_a_row} |of the last {in_a_row} "):
                call()
        else:
            call()


@given(st.lists(st.sampled_from(["failed", "finished", "filtered", "aborted"])), st.integers(1, 4))
def test_failed_groups_are_counted_in_a_row(outcomes: list[str], limit: int) -> None:
    ours = budget(groups=limit)
    tell = [lambda outcome=outcome: ours.group(group(outcome)) for outcome in outcomes]
    spent_at(tell, limit, [outcome == "failed" for outcome in outcomes])


@given(st.lists(st.sampled_from(["failed", "finished", "filtered"])), st.integers(1, 4))
def test_filtered_groups_are_counted_in_a_row(outcomes: list[str], limit: int) -> None:
    ours = budget(groups=1000, filtered=limit)
    tell = [lambda outcome=outcome: ours.group(group(outcome)) for outcome in outcomes]
    spent_at(tell, limit, [outcome == "filtered" for outcome in outcomes])


@given(st.lists(st.booleans()), st.integers(1, 4))
def test_skipped_steps_are_counted_in_a_row(skipped: list[bool], limit: int) -> None:
    ours = budget(steps=limit)
    spent_at([lambda s=s: ours.step(step(s)) for s in skipped], limit, skipped)


@given(st.lists(st.lists(st.sampled_from([None, 0.0, 1.0]), min_size=1, max_size=4)), st.integers(1, 6))
def test_failed_rewards_are_counted_across_groups(groups: list[list[float | None]], limit: int) -> None:
    """A zero is a reward (I7); so many in a row that it is spent inside a group are noticed too."""
    ours = budget(rewards=limit)
    in_a_row = 0
    for rewards in groups:
        longest = 0
        for reward in rewards:
            in_a_row = in_a_row + 1 if reward is None else 0
            longest = max(longest, in_a_row)
        if longest >= limit:
            with pytest.raises(BudgetSpent, match="trajectories had no reward"):
                ours.group(group("finished", rewards=rewards))
            return
        ours.group(group("finished", rewards=rewards))


def test_a_whole_batch_may_always_fail_once() -> None:
    """One bad step of a large recipe must not be more than the budget allows."""
    ours = budget(groups=2, groups_per_step=4)
    for _ in range(3):
        ours.group(group("failed"))
    with pytest.raises(BudgetSpent, match="the last 4 groups failed"):
        ours.group(group("failed"))


def test_the_budgets_do_not_mix() -> None:
    ours = budget(groups=2, rewards=3, steps=2)
    ours.group(group("failed"))
    ours.step(step(skipped=True))
    ours.group(group("finished", rewards=[None, None, 0.0]))
    ours.group(group("failed"))
    with pytest.raises(BudgetSpent):
        ours.step(step(skipped=True))


def test_the_error_names_the_budget_and_the_last_reason() -> None:
    with pytest.raises(BudgetSpent, match=r"budgets\.max_consecutive_failed_groups.* with reward; error 0$"):
        budget(groups=1).group(group("failed", "reward", [None]))
    with pytest.raises(BudgetSpent, match=r"budgets\.max_consecutive_failed_groups.* with ObjectStoreFullError: full$"):
        budget(groups=1).group(group("failed", "ObjectStoreFullError: full"))
    with pytest.raises(BudgetSpent, match=r"budgets\.max_consecutive_reward_failures.* with error 1$"):
        budget(rewards=2).group(group("finished", rewards=[None, None, 1.0]))
    with pytest.raises(BudgetSpent, match=r"budgets\.max_consecutive_skipped_steps.*learning_rate"):
        budget(steps=1).step(step(skipped=True))
