"""How much may go wrong consecutively before the run stops (recipe part `budgets`)."""

from __future__ import annotations

from collections import Counter

from asyncrl.errors import BudgetSpent
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.summary import GroupSummary
from asyncrl.trainer.backend import StepReport


class Budget:
    """Told of every group and step; raises BudgetSpent, saying which budget and why, when one is used up."""

    def __init__(self, recipe: Recipe) -> None:
        self._budgets = recipe.budgets
        self._max_failed_groups = max(recipe.budgets.max_consecutive_failed_groups, recipe.groups_per_step)
        self._streaks: Counter[str] = Counter()

    def group(self, summary: GroupSummary) -> None:
        if number := self._spent("failed", summary.outcome == "failed", self._max_failed_groups):
            reason = "; ".join([summary.reason, *summary.errors[:1]])
            raise BudgetSpent(
                f"the last {number} groups failed (budgets.max_consecutive_failed_groups), the last of them with "
                f"{reason}"
            )
        if number := self._spent(
            "filtered", summary.outcome == "filtered", self._budgets.max_consecutive_filtered_groups
        ):
            raise BudgetSpent(
                f"the last {number} groups were filtered (budgets.max_consecutive_filtered_groups), "
                f"the last of them with {summary.reason}; look at the rewards, or at rollout.max_prompt_tokens"
            )
        for reward in summary.rewards:
            if number := self._spent("reward", reward is None, self._budgets.max_consecutive_reward_failures):
                raise BudgetSpent(
                    f"the last {number} trajectories had no reward (budgets.max_consecutive_reward_failures), "
                    f"the last of them with {'; '.join(summary.errors[-1:])}"
                )

        for error in summary.taught:
            if number := self._spent("taught", bool(error), self._budgets.max_consecutive_reward_failures):
                raise BudgetSpent(
                    f"the teacher has said nothing of the last {number} trajectories "
                    f"(budgets.max_consecutive_reward_failures): {error}"
                )

    def step(self, report: StepReport) -> None:
        skipped = bool(report.metrics.get("trainer/skipped_steps"))
        if number := self._spent("skipped", skipped, self._budgets.max_consecutive_skipped_steps):
            raise BudgetSpent(
                f"the gradients of the last {number} steps were not finite "
                "(budgets.max_consecutive_skipped_steps); lower trainer.learning_rate, or look at the rewards"
            )

    def _spent(self, what: str, went_wrong: bool, limit: int) -> int:
        """How often `what` has now gone wrong consecutively, if that is the limit; else 0."""
        self._streaks[what] = self._streaks[what] + 1 if went_wrong else 0
        return self._streaks[what] if self._streaks[what] >= limit else 0
