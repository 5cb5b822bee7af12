"""The learning rate of a training step: a function of its number and the recipe, so that a resume goes on with it.

    warm-up   (step + 1) / warmup_steps, linear from 0
    then      1                                   constant
              from 1 to min_lr_ratio over         linear, cosine: what is left until the end of step max_steps
              (step - begin) / (max_steps - begin)    wsd: the last decay_steps, linear

The unit is the training step: all optimizer steps of one, over its mini-batches and epochs, have one rate, which is the
metric `trainer/learning_rate`.
"""

from __future__ import annotations

import math

from asyncrl.recipe.schema import Recipe
from asyncrl.recipe.trainer import TrainerRecipe


def learning_rate(recipe: Recipe, step: int) -> float:
    """Of training step `step`, which begins after as many steps."""
    trainer = recipe.trainer
    highest = trainer.learning_rate * min(1.0, (step + 1) / max(trainer.warmup_steps, 1))
    if trainer.schedule == "constant":
        return highest
    begin = _begin_of_fall(trainer, recipe.max_steps)
    progress = min(max((step - begin) / max(recipe.max_steps - begin, 1), 0.0), 1.0)
    lowest = trainer.min_lr_ratio
    return highest * (lowest + (1 - lowest) * _fallen(trainer.schedule, progress))


def _fallen(schedule: str, progress: float) -> float:
    """From 1 to 0 while progress goes from 0 to 1."""
    return (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress


def _begin_of_fall(trainer: TrainerRecipe, max_steps: int) -> int:
    return max_steps - trainer.num_decay_steps(max_steps) if trainer.schedule == "wsd" else trainer.warmup_steps


def bent(before: Recipe, now: Recipe, steps_done: int) -> dict[str, tuple[int, int]]:
    """As changed keys of the recipe are listed: the end of the schedule, if another `max_steps` gives steps that are
    done already another rate than they had."""
    if before.max_steps == now.max_steps:
        return {}
    longer = before.model_copy(update={"max_steps": now.max_steps})
    if all(learning_rate(before, step) == learning_rate(longer, step) for step in range(steps_done)):
        return {}
    return {"trainer.schedule's max_steps": (before.max_steps, now.max_steps)}
