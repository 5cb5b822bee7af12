"""How much may go wrong in a row before the run stops (recipe part `budgets`)."""

from __future__ import annotations

from asyncrl.errors import BudgetSpent
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.summary import GroupSummary
from asyncrl.trainer.learner import StepReport


class Budget:
    """Told of every group and step; raises BudgetSpent, saying which budget and why, when one is used up."""

    def __init__(self, recipe: Recipe) -> None:
        self._budgets = recipe.budgets
        self._max_failed_groups = max(recipe.budgets.failed_groups_in_a_row, recipe.groups_per_step)
        self._failed_groups = self._filtered_groups = self._failed_rewards = self._skipped_steps = 0

    def group(self, summary: GroupSummary) -> None:
        self._failed_groups = self._failed_groups + 1 if summary.outcome == "failed" else 0
        if self._failed_groups >= self._max_failed_groups:
            reason = "; ".join([summary.reason, *summary.errors[:1]])
            raise BudgetSpent(
                f"the last {self._failed_groups} groups failed (budgets.failed_groups_in_a_row), "
                f"the last of them with {reason}"
            )
        self._filtered_groups = self._filtered_groups + 1 if summary.outcome == "filtered" else 0
        if self._filtered_groups >= self._budgets.filtered_groups_in_a_row:
            raise BudgetSpent(
                f"the last {self._filtered_groups} groups were filtered (budgets.filtered_groups_in_a_row), "
                f"the last of them with {summary.reason}; look at the rewards, or at rollout.max_prompt_tokens"
            )
        for reward in summary.rewards:
            self._failed_rewards = self._failed_rewards + 1 if reward is None else 0
            if self._failed_rewards >= self._budgets.reward_failures_in_a_row:
                raise BudgetSpent(
                    f"the last {self._failed_rewards} trajectories had no reward (budgets.reward_failures_in_a_row), "
                    f"the last of them with {'; '.join(summary.errors[-1:])}"
                )

    def step(self, report: StepReport) -> None:
        self._skipped_steps = self._skipped_steps + 1 if report.metrics["trainer/skipped_steps"] else 0
        if self._skipped_steps >= self._budgets.skipped_steps_in_a_row:
            raise BudgetSpent(
                f"the gradients of the last {self._skipped_steps} steps were not finite "
                "(budgets.skipped_steps_in_a_row); lower trainer.learning_rate, or look at the rewards"
            )
