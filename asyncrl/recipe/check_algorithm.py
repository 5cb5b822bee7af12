"""Whether the parts of an objective go together, and with the rest of the recipe. Every fault is a UserError."""

from __future__ import annotations

from collections.abc import Iterator

from asyncrl.errors import UserError
from asyncrl.recipe.algorithm import AlgorithmRecipe
from asyncrl.recipe.schema import Recipe
from asyncrl.registry import ENGINES, LOSSES, Engine, advantage_traits, loss_traits

STALE = 4
"""`max_staleness` from which an uncorrected objective was seen to lose (docs/objectives/choosing.md)."""


def check_algorithm(recipe: Recipe, provides_logprobs: bool) -> None:
    """Raises UserError for the first thing that would not train what the recipe says."""
    for fault in _faults(recipe, recipe.algorithm):
        raise UserError(f"algorithm: {fault}")
    if provides_logprobs:
        return
    for cause, cure in _needs_behaviour(recipe.algorithm):
        raise UserError(
            f"algorithm: {cause} needs behaviour log-probs, but engine {recipe.rollout.engine} gives none; "
            f"set algorithm.{cure}, or take another rollout.engine"
        )


def doubts(recipe: Recipe) -> Iterator[str]:
    """What would run and hardly be meant, in sentences."""
    a = recipe.algorithm
    traits, own = loss_traits(a.loss), a.loss not in LOSSES
    corrected = a.correction != "none" or a.loss == "decoupled_ppo" or a.second_moment_limit or a.reject_kl
    picks = advantage_traits(a.advantage).picks
    unknown = not ENGINES.get(recipe.rollout.engine, Engine("")).provides_logprobs
    if recipe.max_staleness < STALE or own or corrected or picks or traits.reference or unknown:
        return
    if a.loss == "reinforce":
        yield (
            f"max_staleness {recipe.max_staleness:g} trains stale tokens as if they were fresh, for loss reinforce has "
            "no ratio and algorithm.correction is none; set algorithm.loss=topr with algorithm.proximal=behaviour, or "
            "another objective of docs/objectives/choosing.md"
        )
    elif a.proximal != "behaviour":
        yield (
            f"max_staleness {recipe.max_staleness:g} trains stale tokens as if they were fresh, for the ratio is to "
            f"the weights of the step (proximal {a.proximal}) and algorithm.correction is none; set "
            "algorithm.proximal=behaviour, or another objective of docs/objectives/choosing.md"
        )


def _needs_behaviour(a: AlgorithmRecipe) -> Iterator[tuple[str, str]]:
    """Keys that read the behaviour policy's log-probs, and what to set instead."""
    if a.loss == "decoupled_ppo":
        yield "loss decoupled_ppo", "loss=ppo"
    if a.correction != "none":
        yield f"correction {a.correction}", "correction=none"
    if a.proximal != "recompute" and a.loss != "reinforce":
        yield f"proximal {a.proximal}", "proximal=recompute"
    if a.second_moment_limit is not None:
        yield f"second_moment_limit {a.second_moment_limit:g}", "second_moment_limit=null"
    if a.teacher and a.teacher_in == "advantage":
        yield "teacher_in advantage", "teacher_in=loss"
    if a.reject_kl is not None:
        yield f"reject_kl {a.reject_kl:g}", "reject_kl=null"


def _faults(recipe: Recipe, a: AlgorithmRecipe) -> Iterator[str]:
    traits = loss_traits(a.loss)
    corrects = "loss decoupled_ppo" if a.loss == "decoupled_ppo" else f"correction {a.correction}"
    if a.proximal == "behaviour" and (a.loss == "decoupled_ppo" or a.correction != "none"):
        yield f"{corrects} has nothing to correct with proximal behaviour; set algorithm.proximal=recompute"
    if a.loss == "decoupled_ppo" and a.correction != "none":
        yield (
            f"correction {a.correction} would repeat the weight that loss decoupled_ppo has; "
            "set algorithm.correction=none"
        )
    if traits.reference and a.aggregation != "sequence":
        yield f"loss {a.loss} is one number per trajectory; set algorithm.aggregation=sequence"
    if traits.reference and a.correction != "none":
        yield f"loss {a.loss} needs no importance weights; set algorithm.correction=none"
    if a.loss_args and a.loss in LOSSES:
        yield f"loss_args go to a loss of your own, but loss is {a.loss}; its coefficients are keys of algorithm"
    if a.cov_low >= a.cov_high:
        yield f"cov_low {a.cov_low:g} must be below cov_high {a.cov_high:g}"
    if a.mis_low >= a.mis_high:
        yield f"mis_low {a.mis_low:g} must be below mis_high {a.mis_high:g}"
    without_reference = a.loss in LOSSES and not traits.reference and a.kl_coef == 0
    if a.reference_reset_steps and without_reference:
        yield "reference_reset_steps resets a reference policy that nothing uses; set kl_coef, or leave it out"
    if a.overlong_buffer > recipe.max_sampled_tokens:
        yield f"overlong_buffer {a.overlong_buffer} is longer than rollout.max_new_tokens; lower it"
    if recipe.env is not None and traits.reference:
        yield (
            f"loss {a.loss} compares whole completions, and a rollout of env may have several sequences; take another "
            "loss, or leave env out"
        )
    if recipe.env is not None and a.replay_share:
        yield "replay_share replaces single completions, and a rollout of env may have several; set it to 0"
    if a.credit == "turn" and recipe.env is None:
        yield "credit turn is for the turns of an environment, and there is no env; set it to episode"
    baseline = advantage_traits(a.advantage).baseline
    if baseline != "none" and a.replay_share:
        yield f"advantage {a.advantage} would count the reward of a replayed trajectory twice; set replay_share to 0"
    if a.credit == "turn" and (a.advantage == "gae" or advantage_traits(a.advantage).picks or baseline != "none"):
        yield f"credit turn needs an advantage of each turn, and {a.advantage} gives none; take grpo, dr_grpo or rloo"
    if recipe.trainer.lora.rank and a.reference_reset_steps:
        yield "reference_reset_steps cannot move a reference that is the model without its adapters; leave it out"
    if recipe.trainer.lora.rank and a.advantage == "gae":
        yield "advantage gae trains a critic, which has no adapters; set trainer.lora.rank=0, or another advantage"
    if recipe.trainer.minibatches > recipe.groups_per_step:
        yield (
            f"trainer.minibatches {recipe.trainer.minibatches} is more than the groups of a step; "
            f"set it to groups_per_step ({recipe.groups_per_step}) or less"
        )
    if recipe.group_size == 1 and a.filter_equal_rewards:
        yield "filter_equal_rewards would filter every group, as group_size is 1; set it to false"
    compares = traits.pairs or advantage_traits(a.advantage).compares
    if recipe.group_size == 1 and compares and not recipe.taught_alone:
        yield (
            f"group_size 1 gives every trajectory advantage 0 under algorithm.advantage {a.advantage}; "
            "set group_size to 2 or more"
        )
