"""The part of a recipe that names demonstrations, which are learnt beside the loss of what is sampled."""

from __future__ import annotations

from pydantic import PositiveFloat

from asyncrl.recipe.data import DataRecipe
from asyncrl.recipe.part import Part, PositiveInt


class SftRecipe(Part):
    data: DataRecipe
    """Rows that have the answers (docs/sft.md). `chat`, `system` and `chat_template_kwargs` are as in the recipe's
    `data`, unless they are said here; `max_tokens` is by default the longest trajectory of the run."""
    coef: PositiveFloat = 0.1
    """Weight of the term: the mean of -log pi over all learnt tokens of an optimizer step's rows."""
    rows_per_step: PositiveInt = 16
    """Rows that join a training step; each of its `trainer.minibatches` takes its share of them."""
