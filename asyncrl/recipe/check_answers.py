"""Whether a recipe whose rows have the answers asks for nothing else, and whether another asks for none of that. Every
fault is a UserError."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from asyncrl.errors import UserError
from asyncrl.recipe.algorithm import AlgorithmRecipe
from asyncrl.recipe.rollout import RolloutRecipe
from asyncrl.recipe.schema import Recipe
from asyncrl.registry import LOSSES, loss_traits
from asyncrl.task import DATA, MADE

_OF_SAMPLES = (
    *("credit", "normalise_advantages", "correction", "second_moment_limit", "reject_kl", "staleness_weight"),
    *("filter_equal_rewards", "mask_truncated", "overlong_buffer", "replay_share", "entropy_quantile", "teacher"),
)
"""Keys of `algorithm` that say something of rewards, or of who sampled a token."""
_LEARNT = ("sft", "dpo", "ipo")


def check_answers(recipe: Recipe) -> None:
    """Raises UserError for the first key that has no meaning beside `rollout.engine: data`, or only beside that."""
    for fault in _faults(recipe) if recipe.from_data else _faults_of_others(recipe):
        raise UserError(fault)


def _faults(recipe: Recipe) -> Iterator[str]:
    a, pairs = recipe.algorithm, loss_traits(recipe.algorithm.loss).pairs
    for key in ("reward", "env"):
        if getattr(recipe, key) is not None:
            yield f"{key} judges what is sampled, and with rollout.engine data the rows have the answers; leave it out"
    if recipe.eval:
        yield (
            "eval samples, and with rollout.engine data there is no engine; leave it out, and score the model by "
            "`asyncrl eval RUN_DIR --recipe RECIPE`"
        )
    if a.loss in LOSSES and a.loss not in _LEARNT:
        yield (
            f"algorithm.loss {a.loss} is for sampled tokens, and with rollout.engine data the rows have the answers; "
            f"take {', '.join(_LEARNT)} or a loss of your own"
        )
    if recipe.group_size > 2 or (a.loss in LOSSES and recipe.group_size != 1 + pairs):
        has = "a chosen and a rejected answer" if pairs else "one answer"
        yield f"group_size {recipe.group_size}: with rollout.engine data a row has {has}; leave group_size out"
    if a.advantage != "none":
        yield f"algorithm.advantage {a.advantage} is of rewards, and rollout.engine data has none; leave it out"
    yield from _others(a, AlgorithmRecipe(), "algorithm", _OF_SAMPLES)
    keys = tuple(key for key in RolloutRecipe.model_fields if key != "engine")
    yield from _others(recipe.rollout, RolloutRecipe(), "rollout", keys)
    for source in recipe.sources:
        if source.online_success_rate is not None:
            yield "data.online_success_rate is of sampled answers, which rollout.engine data has none of; leave it out"
        if source.title.startswith(MADE[1]):
            yield f"data.path {source.title} has tasks without answers; take rows that have them"


def _others(part: Any, usual: Any, name: str, keys: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        if getattr(part, key) != getattr(usual, key):
            hint = "; for the length of rows set data.max_tokens" if key.startswith("max_") else "; leave it out"
            yield f"{name}.{key} is for what is sampled, and with rollout.engine data the rows have the answers{hint}"


def _faults_of_others(recipe: Recipe) -> Iterator[str]:
    for key in ("completion_column", "max_tokens"):
        if any(getattr(source, key) is not None for source in recipe.sources):
            yield f"data.{key} is for rows that have the answers; set rollout.engine={DATA}, or leave it out"
    if recipe.algorithm.loss == "sft":
        yield (
            "algorithm.loss sft learns all that it is given; for answers in the data set rollout.engine=data, for the "
            "best of what is sampled algorithm.preset=best_of_n"
        )
