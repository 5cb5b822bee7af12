"""What a recipe asks of its roles: how long prompts and completions are, and how often a token passes the model.

Lengths are assumed, unless a run has measured them: what a task makes a model write is not in a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncrl.errors import UserError
from asyncrl.planner.lengths import Lengths
from asyncrl.planner.shape import Shape
from asyncrl.recipe.schema import Recipe
from asyncrl.registry import loss_traits

COMPLETION_SHARE = 0.4
"""Mean of a rollout over the longest, where nothing was measured."""
PROMPT_SHARE = 0.25
"""Mean of a prompt over max_prompt_tokens."""


@dataclass(frozen=True)
class Work:
    """Of one step: groups of trajectories of these lengths."""

    num_groups: int
    group_size: int
    prompt_tokens: float
    """In the mean."""
    lengths: Lengths
    origin: str
    """Where the lengths are from, in words."""

    @property
    def num_samples(self) -> int:
        return self.num_groups * self.group_size

    @property
    def completion_tokens(self) -> float:
        """Of a step, in the mean."""
        return self.num_samples * self.lengths.mean

    @property
    def row_tokens(self) -> float:
        """The same with the prompts, once a group, as the trainer lays them out (`trainer/packing.py`)."""
        return self.completion_tokens + self.num_groups * self.prompt_tokens

    @property
    def context_tokens(self) -> float:
        """What a token of a completion has before it, in the mean: longer ones have more such tokens."""
        values = self.lengths.values
        return self.prompt_tokens + sum(v * v for v in values) / (2 * sum(values))


def assumed(recipe: Recipe, mean_tokens: float | None = None) -> Work:
    """The work of a recipe that has not run; `mean_tokens`: of a rollout, if somebody knows it."""
    longest, key = recipe.max_sampled_tokens, "env.max_context_tokens" if recipe.env else "rollout.max_new_tokens"
    mean = mean_tokens or max(1.0, COMPLETION_SHARE * longest)
    prompt = PROMPT_SHARE * recipe.rollout.max_prompt_tokens
    if mean > longest:
        raise UserError(
            f"--mean-tokens {mean} is more than {key} {longest}, the longest rollout; lower it, or raise that"
        )
    lengths = Lengths.log_normal(mean, longest)
    what, how = "completions", "with a long tail"
    if recipe.env:
        what, how = "episodes", "with a long tail, each planned as one completion that waits for no tool"
    origin = f"assumed: prompts of {prompt:.0f} tokens and {what} of {mean:.0f} in the mean, {how}"
    return Work(recipe.groups_per_step, recipe.group_size, prompt, lengths, origin)


def trained_share(recipe: Recipe) -> float:
    """Of the trajectories of a batch: of pairs, the best and the worst of a group."""
    return min(1.0, 2 / recipe.group_size) if loss_traits(recipe.algorithm.loss).pairs else 1.0


def num_gradients(recipe: Recipe) -> int:
    """Passes with gradient of each token in a step, by the policy; a critic makes as many."""
    return recipe.trainer.epochs


def passes_without_gradient(recipe: Recipe) -> int:
    """Of each token in a step, by any model (`trainer/learner.py`, `trainer/objective.py`)."""
    a, trainer = recipe.algorithm, recipe.trainer
    several = trainer.epochs * trainer.minibatches > 1 and a.proximal == "recompute"
    proximal = several or (a.kl_coef > 0 and a.kl_in == "reward")
    loss = loss_traits(a.loss)
    sees_whole = a.second_moment_limit is not None or a.entropy_quantile > 0 or loss.reference or loss.covariances
    return needs_reference(recipe) + proximal + has_critic(recipe) + trainer.epochs * sees_whole


def needs_reference(recipe: Recipe) -> bool:
    """Whether a frozen policy is asked for its log-probs."""
    return recipe.algorithm.kl_coef > 0 or loss_traits(recipe.algorithm.loss).reference


def has_critic(recipe: Recipe) -> bool:
    return recipe.algorithm.advantage == "gae"


def adapter_parameters(recipe: Recipe, shape: Shape) -> int:
    """Of LoRA on all linear layers, the most there can be; 0 without."""
    return recipe.trainer.lora.rank * shape.linear_widths * shape.layers


def channel(recipe: Recipe) -> str:
    """That a run on GPUs uses, where the recipe leaves it open (`orchestrator/actors.py`)."""
    if recipe.weights.channel != "auto":
        return recipe.weights.channel
    if recipe.trainer.lora.rank:
        return "a host channel"
    return "cuda_ipc" if recipe.on_one_gpu else "nccl"
