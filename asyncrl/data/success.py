"""How often a model solves each row: by a column of the data, or by an evaluation of it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from asyncrl.data.files import FileRows
from asyncrl.data.prompts import Prompt
from asyncrl.errors import UserError
from asyncrl.metric_names import JUDGED, VERDICTS
from asyncrl.recipe.data import SuccessRate
from asyncrl.task import asked
from asyncrl.verdicts import verdicts

_COLUMN = "success_rate"
TOO_HARD, TOO_EASY = "too_hard", "too_easy"


class SuccessRates:
    """Of the rows of one table."""

    def __init__(self, recipe: SuccessRate, columns: list[str]) -> None:
        """Raises UserError: there is no such column, or the file is of no evaluation."""
        self._recipe = recipe
        self.num_unknown = 0
        """Rows that nobody has tried, so far."""
        self.column = None if recipe.path is not None else recipe.column or _COLUMN
        if self.column is not None and self.column not in columns:
            raise UserError(
                f"data.success_rate: the data set has no column '{self.column}', only {', '.join(columns)}; name the "
                "one with the rates in data.success_rate.column, or an evaluation of the rows in data.success_rate.path"
            )
        self._asked: dict[int, str] = {}
        self._rates = self._read(Path(recipe.path)) if recipe.path is not None else {}

    def fault(self, index: int, row: dict[str, Any], prompt: Prompt, where: str) -> tuple[str, str] | None:
        """Why the row is left out: the reason, and the rate. None: it is not. Raises UserError for what is no rate, or
        another row's."""
        rate = self._of_evaluation(index, prompt, where) if self.column is None else self._of_column(row, where)
        if rate is None:
            self.num_unknown += 1
            return None
        if self._recipe.min < rate < self._recipe.max:
            return None
        return (TOO_HARD if rate <= self._recipe.min else TOO_EASY), f"{where} has a success rate of {rate:g}"

    def _of_column(self, row: dict[str, Any], where: str) -> float | None:
        rate = row[self.column]
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1):
            raise UserError(f"data.success_rate: {where} has {rate!r:.40} in '{self.column}', no share from 0 to 1")
        return rate

    def _of_evaluation(self, index: int, prompt: Prompt, where: str) -> float | None:
        if index in self._asked and self._asked[index] != asked(prompt.value):
            raise UserError(
                f"data.success_rate.path: {self._recipe.path} is an evaluation of other rows: of row {index} it has "
                f"{self._asked[index]!r:.60}, and {where} asks {asked(prompt.value)!r:.60}; evaluate this data"
            )
        return self._rates.get(index)

    def _read(self, path: Path) -> dict[int, float]:
        try:
            lines = FileRows([path], {})
        except UserError as error:
            raise UserError(str(error).replace("data.path", "data.success_rate.path", 1)) from error
        rewards, extras = defaultdict[int, list[Any]](list), defaultdict[int, list[dict[str, float]]](list)
        for number in range(len(lines)):
            line = lines[number]
            index = line.get("row")
            if type(index) is not int or not isinstance(line.get("prompt"), str) or "reward" not in line:
                raise UserError(
                    f"data.success_rate.path: {lines.where(number)} is no completion of an evaluation, with row, "
                    "prompt and reward; name what `asyncrl eval` writes, evaluations/NAME-VERSION.jsonl"
                )
            self._asked[index] = line["prompt"]
            rewards[index].append(line["reward"])
            extras[index].append({name: line[name] for name in (*VERDICTS, JUDGED) if line.get(name) is not None})
        right = verdicts([*rewards.values()], [*extras.values()])
        if not any(right):
            raise UserError(
                f"data.success_rate.path: {path} does not say what is right, by a reward of 1 or by accuracy; let the "
                "reward return one (docs/rewards.md)"
            )
        return {index: statistics.fmean(one) for index, one in zip(rewards, right, strict=True) if one}
