"""The demonstrations that join each step beside what is sampled (`algorithm.sft`).

    step k, n rows a step --seed--> draws k·n to k·n + n - 1 --> rows --chat template--> sequences

A pure function of the seed and the step: nobody keeps a cursor, and a step that is trained again has the same rows.
Rows that cannot be used are left out before the first draw, by all who draw alike.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from asyncrl.data.check import answer_lines, described, rendered, tokenizer_of
from asyncrl.data.demonstrations import Rendered, Renderer
from asyncrl.data.prompts import BadPrompt
from asyncrl.data.source import load_rows
from asyncrl.data.tasks import TaskSource
from asyncrl.errors import UserError
from asyncrl.metric_names import nth
from asyncrl.recipe.schema import Recipe

logger = logging.getLogger(__name__)

_SEED = 0xD1B54A32D192ED03
"""Added to the recipe's, so that rows which are tasks, too, come in another order than those."""


def load_source(recipe: Recipe, base_dir: Path, tokenizer: Any) -> TaskSource:
    """The table of `algorithm.sft`, without what cannot be learnt. Raises UserError if it cannot be read, has no
    answers, or none that fit the model."""
    assert recipe.algorithm.sft is not None
    data = recipe.algorithm.sft.data
    paths = [str(base_dir / path) if (base_dir / path).exists() else path for path in data.paths]
    try:
        rows = load_rows(data.model_copy(update={"path": paths if len(paths) > 1 else paths[0]}), recipe.seed)
        source = TaskSource(rows, data, recipe.seed + _SEED, num_answers=1)
        source.check_prompts()
        source.first_prompt(tokenizer)
        source.check_lengths(tokenizer, recipe.max_demonstration, "algorithm.sft.data.max_tokens", warn=False)
        source.leave_out(tokenizer, recipe.max_demonstration)
        return source
    except UserError as error:
        raise _named(error) from error


def load_checked(recipe: Recipe, tokenizer: Any) -> TaskSource | None:
    """The same from the working directory, if the recipe has it, once every row has been read; says which is the first.
    Raises UserError as for `rollout.engine: data`."""
    if recipe.algorithm.sft is None:
        return None
    source = load_source(recipe, Path(), tokenizer)
    for line in _first(source, tokenizer)[:1]:
        logger.info("first demonstration of algorithm.sft: %s", line)
    return source


def preview(recipe: Recipe, base_dir: Path) -> list[str]:
    """Lines with the first demonstration, if there are any. Raises UserError as a run would, for local data and
    models."""
    if (sft := recipe.algorithm.sft) is None:
        return []
    if not sft.data.is_here or (tokenizer := tokenizer_of(recipe, base_dir)) is None:
        return [f"sft        {sft.data.title}: read and shown when the run starts"]
    source = load_source(recipe, base_dir, tokenizer)
    first, *shown = _first(source, tokenizer)
    return [
        f"sft        {sft.rows_per_step} of {source.counted()} of <= {recipe.max_demonstration} tokens join each "
        f"step, weight {sft.coef:g}",
        f"first row  {first}",
        *shown,
    ]


def _first(source: TaskSource, tokenizer: Any) -> list[str]:
    """The first row in words: where it is from and how long its prompt is, the prompt, what is learnt."""
    task, tokens = source.first(tokenizer)
    return [described(task, tokens, tokenizer), *rendered(tokens, tokenizer), *answer_lines(task, tokenizer)]


def _named(error: UserError) -> UserError:
    return UserError(f"algorithm.sft: {error}")


class Demonstrations:
    """What each step learns. Not for several threads."""

    def __init__(self, recipe: Recipe, tokenizer: Any, base_dir: Path) -> None:
        """Raises UserError as `load_source`."""
        assert recipe.algorithm.sft is not None
        self._source, self._number = load_source(recipe, base_dir, tokenizer), recipe.algorithm.sft.rows_per_step
        self._renderer, self._most = Renderer(tokenizer), recipe.max_demonstration
        self._said: set[str] = set()

    def digest(self) -> str:
        """A hash that tells these rows from others."""
        return self._source.digest()

    def rows(self, step: int) -> list[list[Rendered]]:
        """The sequences of each row of training step `step`. The first that is left out for a reason is logged."""
        found = []
        for draw in range(step * self._number, (step + 1) * self._number):
            try:
                [sequences] = self._renderer.render(self._source.task(draw), self._most)
                found.append(sequences)
            except BadPrompt as fault:
                if fault.reason not in self._said:
                    self._said.add(fault.reason)
                    logger.warning(
                        "step %d learns a demonstration less (%s, said of the first only): %s",
                        *(nth(step), fault.reason, fault),
                    )
        return found
