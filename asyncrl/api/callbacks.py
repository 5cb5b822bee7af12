"""What a program hears of its run while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from asyncrl.api.run import Run
from asyncrl.observe.evaluations import EVALUATION


class Callback:
    """Override what you need. Methods are called one after the other, in a thread beside the run; one that raises is
    warned about, and its callback left out from then on."""

    def on_step_end(self, run: Run, record: dict[str, float]) -> None:
        """A step is done. record: its figures (docs/tracking.md)."""

    def on_evaluate(self, run: Run, figures: dict[str, float]) -> None:
        """An evaluation is done. figures: eval/NAME/accuracy, eval/NAME/version, ..."""

    def on_train_end(self, run: Run) -> None:
        """The run has ended, however it did."""


class Callbacks:
    """Of one run, as a tracker."""

    def __init__(self, callbacks: Sequence[Callback], run: Run) -> None:
        self._callbacks, self._run = callbacks, run

    def log(self, step: int, scalars: dict[str, float]) -> None:
        is_evaluation = all(key.startswith(EVALUATION) for key in scalars)
        for callback in self._callbacks:
            heard: Callable[[Run, dict[str, Any]], None] = (
                callback.on_evaluate if is_evaluation else callback.on_step_end
            )
            heard(self._run, dict(scalars))

    def close(self) -> None:
        for callback in self._callbacks:
            callback.on_train_end(self._run)
