"""Which CPU cores each role works on where the recipe does not say.

Two roles that work side by side, each with a thread on every core, wait for one another at the end of every parallel
loop: then each gets half of the cores. Roles that take turns, or of which one is on GPUs, get all.
"""

from __future__ import annotations

import os

from asyncrl.recipe.schema import Recipe


def engine_cores(recipe: Recipe) -> str:
    """Of the CPU engines, as a list such as "0-1"."""
    last = (_num_cores() // 2 if _side_by_side(recipe) else _num_cores()) - 1
    return recipe.rollout.cpu_cores or f"0-{last}"


def trainer_threads(recipe: Recipe) -> int:
    """torch threads of a trainer rank."""
    share = _num_cores() - _num_cores() // 2 if _side_by_side(recipe) else _num_cores()
    return recipe.trainer.cpu_threads or max(1, share // recipe.trainer.ranks)


def _side_by_side(recipe: Recipe) -> bool:
    on_cpus = not (recipe.rollout.gpus_per_replica or recipe.trainer.gpus_per_rank)
    return recipe.max_staleness > 0 and on_cpus and _num_cores() > 1


def _num_cores() -> int:
    return os.cpu_count() or 1
