"""Whether demonstrations beside the loss go together with the rest of the recipe. Every fault is a UserError."""

from __future__ import annotations

from collections.abc import Iterator

from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe
from asyncrl.recipe.sft import SftRecipe
from asyncrl.registry import TRAINERS
from asyncrl.task import VERIFIERS


def check_sft(recipe: Recipe) -> None:
    """Raises UserError for the first thing that would not be learnt as the recipe says. The file itself: `check.py`."""
    if (sft := recipe.algorithm.sft) is not None:
        for fault in _faults(recipe, sft):
            raise UserError(fault)


def _faults(recipe: Recipe, sft: SftRecipe) -> Iterator[str]:
    if recipe.from_data and recipe.algorithm.loss == "sft":
        yield (
            "algorithm.sft adds demonstrations to another loss, and with algorithm.loss sft every row is one; put its "
            "rows into data"
        )
    if sft.data.title.startswith(VERIFIERS):
        yield f"algorithm.sft.data.path {sft.data.title} has tasks without answers; take rows that have them"
    for key in ("success_rate", "online_success_rate"):
        if getattr(sft.data, key) is not None:
            yield f"algorithm.sft.data.{key} is of tasks that are sampled, and demonstrations are not; leave it out"
    if recipe.trainer.backend not in TRAINERS:
        yield (
            f"algorithm.sft is learnt by trainer.backend fsdp, and {recipe.trainer.backend} knows nothing of it; "
            "leave it out"
        )
    most = recipe.trainer.tokens_per_microbatch
    if recipe.max_demonstration > most:
        yield (
            f"algorithm.sft.data.max_tokens {recipe.max_demonstration} is more than trainer.tokens_per_microbatch "
            f"{most}, and a row passes the model whole; lower it, or raise that"
        )
    if recipe.trainer.minibatches > sft.rows_per_step:
        yield (
            f"trainer.minibatches {recipe.trainer.minibatches} is more than algorithm.sft.rows_per_step "
            f"{sft.rows_per_step}; raise that, so that each has a row"
        )
