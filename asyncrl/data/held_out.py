"""Held-out tasks of a recipe's evaluations, and whether they are held out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from asyncrl.data.check import tokenizer_of
from asyncrl.data.mixture import Tasks
from asyncrl.data.source import load_rows
from asyncrl.data.tasks import TaskSource
from asyncrl.errors import UserError
from asyncrl.recipe.evaluation import EvalRecipe
from asyncrl.recipe.schema import Recipe
from asyncrl.rewards.load import load_part

logger = logging.getLogger(__name__)

_MOST_COMPARED = 100_000
"""Rows of the training data that held-out prompts are looked for in."""


@dataclass(frozen=True)
class HeldOut:
    """The tasks of one evaluation."""

    part: EvalRecipe
    tasks: TaskSource
    num_tasks: int
    num_trained: int = 0
    """Of them whose prompts are in the training data too."""


def load_held_out(recipe: Recipe, base_dir: Path, tokenizer: Any, training: Sequence[Tasks]) -> list[HeldOut]:
    """The tasks of every evaluation; `training`: all that is trained on. Raises UserError as for the training data;
    prompts that are trained too are warned of."""
    found = []
    for place, part in enumerate(recipe.eval):
        try:
            found.append(_load(recipe, part, base_dir, tokenizer, training))
        except UserError as error:
            raise UserError(f"eval.{place} ({part.name}): {error}") from error
    return found


def preview_held_out(recipe: Recipe, base_dir: Path) -> list[str]:
    """A line for each evaluation. Raises UserError as a run would, for local data and models; whether prompts are
    trained too, the run says."""
    if not recipe.eval:
        return []
    if not all(part.data.is_here for part in recipe.eval) or (tokenizer := tokenizer_of(recipe, base_dir)) is None:
        return [f"eval       {part.name}: read when the run starts" for part in recipe.eval]
    return [
        f"eval       {one.part.name}: {one.num_tasks} tasks x {one.part.n}, every {one.part.every_steps} steps"
        for one in load_held_out(recipe, base_dir, tokenizer, ())
    ]


def _load(recipe: Recipe, part: EvalRecipe, base_dir: Path, tokenizer: Any, training: Sequence[Tasks]) -> HeldOut:
    rows = load_rows(part.data, recipe.seed)
    judging = recipe.parts_of(part) or [one for one in recipe.reward_parts if not one.source]
    if not judging and recipe.env is None:
        raise UserError("only sources of the training data have rewards; name the reward of this evaluation")
    for one in judging:
        load_part(one, base_dir).check_columns(rows.column_names)
    tasks = TaskSource(rows, part.data.model_copy(update={"shuffle": False}), recipe.seed)
    tasks.check_prompts()
    tasks.first_prompt(tokenizer)
    tasks.check_lengths(tokenizer, recipe.rollout.max_prompt_tokens)
    number = min(part.max_tasks or tasks.num_drawn, tasks.num_drawn)
    prompts = list(tasks.prompts(number))
    trained = set(prompts).intersection(*[chain.from_iterable(one.prompts(_MOST_COMPARED) for one in training)])
    num_trained = sum(prompt in trained for prompt in prompts)
    if num_trained:
        logger.warning(
            "evaluation %s: %d of its %d prompts are in the training data too; its score says less of new ones",
            part.name,
            num_trained,
            number,
        )
    return HeldOut(part, tasks, number, num_trained)
