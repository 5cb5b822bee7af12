"""Several data sources, drawn from in fixed shares.

    draw n --weights alone--> (source, its j-th draw) --seed--> row

Both steps are pure functions, so the cursor of a run stays one number, and a resumed run draws what the first one would
have drawn. A share is of draws, never of rows: a small source with a large weight begins its next epoch sooner.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from asyncrl.data.order import Draws
from asyncrl.data.selection import Seen
from asyncrl.data.tasks import TaskSource
from asyncrl.recipe.data import DataPart
from asyncrl.task import Task

SOURCE_COLUMN = "data_source"
"""verl's name for it; rows that have one keep theirs."""
_STRIDE = 0x9E3779B97F4A7C15
"""Odd, so that the seeds of sources differ, and with them the orders of tables of one length."""


_FARTHEST = 2 * 10**6


class Shares:
    """Which source gives a draw: always the one that is furthest behind its share. So every stretch of draws has the
    shares that the whole has, to within a draw or so for each source."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.of = [weight / sum(weights) for weight in weights]
        self._given = [0] * len(weights)
        self._source, self._nth = array("L"), array("Q")
        self._draws = [array("Q") for _ in weights]
        """Of each source."""

    def at(self, draw: int) -> tuple[int, int]:
        """The source, and how many draws it gave before this one."""
        for number in range(len(self._source), draw + 1):
            behind = [share * (number + 1) - given for share, given in zip(self.of, self._given, strict=True)]
            source = behind.index(max(behind))
            self._source.append(source)
            self._nth.append(self._given[source])
            self._draws[source].append(number)
            self._given[source] += 1
        return self._source[draw], self._nth[draw]

    def draw_of(self, source: int, nth: int) -> int | None:
        """Inverse of `at`; None of one that it was not yet asked for."""
        return self._draws[source][nth] if nth < len(self._draws[source]) else None


class Mixture:
    """Draws tasks from several sources; in the place of a TaskSource."""

    def __init__(self, recipes: Sequence[DataPart], tables: Sequence[Any], seed: int, num_answers: int = 0) -> None:
        """`tables`: the rows of each; `num_answers` as TaskSource's. Raises UserError if one has no prompt column."""
        self.recipes = list(recipes)
        self.sources = [
            TaskSource(rows, recipe, seed + place * _STRIDE, num_answers)
            for place, (recipe, rows) in enumerate(zip(recipes, tables, strict=True))
        ]
        self.shares = Shares([recipe.weight for recipe in recipes])
        self.draws = Draws()

    @property
    def num_rows(self) -> int:
        return sum(source.num_rows for source in self.sources)

    @property
    def num_drawn(self) -> int:
        """Rows that an epoch of every source visits."""
        return sum(source.num_drawn for source in self.sources)

    def selected(self) -> list[dict[str, Any]]:
        """As TaskSource's, of every source."""
        named = zip(self.recipes, self.sources, strict=True)
        return [{**found, "name": recipe.label} for recipe, source in named for found in source.selected()]

    @property
    def column(self) -> list[str]:
        """Those of the prompts."""
        return [source.column for source in self.sources]

    @property
    def answers(self) -> list[list[str]]:
        """Columns of the answers, of each source."""
        return [list(source.answers) for source in self.sources]

    def digest(self) -> str:
        """A hash that tells these rows, and how they are mixed, from others."""
        each = [(recipe.label, recipe.weight) for recipe in self.recipes]
        rows = [source.digest() for source in self.sources]
        return hashlib.sha256(json.dumps([each, rows]).encode()).hexdigest()

    def task(self, draw: int) -> Task:
        """The task of sample index `draw`. Raises BadPrompt if its row has no usable prompt."""
        place, nth = self.shares.at(self.draws.place(draw))
        task, label = self.sources[place].task(nth), self.recipes[place].label
        first_row = self.draws.first_row + sum(source.num_rows for source in self.sources[:place])
        row = {SOURCE_COLUMN: label, **task.row}
        return replace(task, number=draw, row_index=first_row + task.row_index, row=row, source=label)

    def foresee(self, draws: int) -> None:
        """As TaskSource's; some seconds for a million draws."""
        if any(recipe.online_success_rate is not None for recipe in self.recipes):
            self.shares.at(min(self.draws.place(draws), _FARTHEST))

    def skipped_after(self, draw: int, success_rate: float | None) -> list[int]:
        """As TaskSource's. The other sources take these places."""
        if success_rate is None or not self.draws.has(draw):
            return []
        place, nth = self.shares.at(self.draws.place(draw))
        later = (self.shares.draw_of(place, one) for one in self.sources[place].skipped_after(nth, success_rate))
        return [self.draws.at(one) for one in later if one is not None]

    def prompts(self, most: int) -> Iterator[str]:
        """As TaskSource's, of up to `most` rows of every source."""
        for source in self.sources:
            yield from source.prompts(most)

    def check_prompts(self) -> None:
        seen = Seen()
        for source in self.sources:
            source.check_prompts(seen)

    def first_prompt(self, tokenizer: Any) -> tuple[Task, list[int]]:
        """As TaskSource's, of every source; returns that of the first."""
        first, *_ = [source.first_prompt(tokenizer) for source in self.sources]
        return first

    def first(self, tokenizer: Any) -> tuple[Task, list[int]]:
        return self.sources[0].first(tokenizer)

    def check_lengths(
        self, tokenizer: Any, most: int, key: str = "rollout.max_prompt_tokens", warn: bool = True
    ) -> None:
        for source in self.sources:
            source.check_lengths(tokenizer, most, key, warn)

    def leave_out(self, tokenizer: Any, most: int) -> None:
        for source in self.sources:
            source.leave_out(tokenizer, most)

    def described(self) -> list[str]:
        """A line for each source: rows, share, weight."""
        return [
            f"{recipe.label}: {share:.1%} of the tasks (weight {recipe.weight:g}), {source.counted()}"
            for recipe, share, source in zip(self.recipes, self.shares.of, self.sources, strict=True)
        ]


Tasks = TaskSource | Mixture
"""What a run draws from."""
