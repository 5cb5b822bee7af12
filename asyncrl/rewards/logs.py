"""What a reward logs while it is called, beside the rewards that it returns (TRL's `log_extra` and `log_metric`)."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from asyncrl.rewards.score import NO_LISTS, RESERVED, Score, failed, finite, sorted_out


class Logs:
    """Of one call, for `number` completions."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._metrics: dict[str, list[Any]] = {}
        self._columns: dict[str, list[Any]] = {}

    def log_metric(self, name: str, value: Any) -> None:
        """A number for all completions of the call; several under one name are averaged. What is no finite number is
        kept as text."""
        self._metrics.setdefault(_checked(name), []).append(value)

    def log_extra(self, column: str, values: Any) -> None:
        """A value for each completion, or one alone if there is one completion."""
        try:  # not by type: arrays of numpy and torch are no sequences
            several = not isinstance(values, NO_LISTS) and (len(values) == 1 or self._number > 1)
        except TypeError:
            several = False
        self._columns.setdefault(_checked(column), []).extend(values if several else [values])

    def onto(self, scores: list[Score]) -> list[Score]:
        """The scores with what was logged: numbers as extras, anything else as notes. A column of another length
        fails them all, as it cannot be told whose its values are."""
        for column, values in self._columns.items():
            if len(values) != self._number:
                reason = f"log_extra('{column}') was given {len(values)} values for {self._number} completions"
                return [failed(reason)] * self._number
        return [self._onto(place, score) for place, score in enumerate(scores)]

    def _onto(self, place: int, score: Score) -> Score:
        means = {name: _mean(values) for name, values in self._metrics.items()}
        extras, notes = sorted_out({**means, **{name: values[place] for name, values in self._columns.items()}})
        return replace(score, extras={**extras, **score.extras}, notes={**notes, **score.notes})


def _mean(values: list[Any]) -> Any:
    """Of the finite numbers, or if there are none the last that was logged."""
    numbers = [n for value in values if (n := finite(value)) is not None]
    return statistics.fmean(numbers) if numbers else values[-1]


def _checked(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"'{name}' cannot be logged: the records use it themselves; rename it")
    return str(name)
