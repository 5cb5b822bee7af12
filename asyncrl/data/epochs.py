"""`max_epochs` in training steps: known once the rows are counted, before anything starts.

    max_steps = ceil(max_epochs · rows / groups_per_step)    in exact numbers; rows: those that are drawn

A run is one of steps from there on, and its recipe says both.
"""

from __future__ import annotations

import logging
import math
from fractions import Fraction
from pathlib import Path

from asyncrl.data.check import exact_tokenizer, leave_out_long, load_tasks
from asyncrl.errors import UserError
from asyncrl.recipe.check_trainer import check_trainer
from asyncrl.recipe.schema import UNKNOWN_STEPS, Recipe

logger = logging.getLogger(__name__)


def in_steps(recipe: Recipe, base_dir: Path, stored: Recipe | None = None) -> Recipe:
    """The recipe with its `max_steps`. `stored`: that of the run which goes on. Raises UserError if the recipe says
    another number of steps, too, or its schedule has no room in them, or as `load_tasks`."""
    if recipe.max_epochs is None:
        return recipe
    derived = {UNKNOWN_STEPS} if stored is None else {UNKNOWN_STEPS, stored.max_steps}
    if stored is not None and recipe.max_epochs == stored.max_epochs and recipe.max_steps in derived:
        return recipe.model_copy(update={"max_steps": stored.max_steps})
    tasks = load_tasks(recipe, base_dir)
    leave_out_long(recipe, tasks, exact_tokenizer(recipe, base_dir))
    rows = tasks.num_drawn
    # As it is written: 0.1 is no binary fraction.
    steps = math.ceil(Fraction(str(recipe.max_epochs)) * rows / recipe.groups_per_step)
    epochs = f"max_epochs {recipe.max_epochs:g} of {rows} rows, {recipe.groups_per_step} a step"
    if recipe.max_steps not in {*derived, steps}:
        raise UserError(
            f"max_steps is {recipe.max_steps}, and {epochs}, are {steps} steps; set max_steps=null or max_epochs=null"
        )
    logger.info("max_steps is %d: %s", steps, epochs)
    recipe = recipe.model_copy(update={"max_steps": steps})
    check_trainer(recipe)
    return recipe
