"""What a program hears of its run while it goes on."""

from __future__ import annotations

from asyncrl.api.run import Run
from asyncrl.observe.evaluations import EVALUATION


class Callback:
    """Override what you need. Methods are called one after the other, in a thread beside the run; a callback that
    raises is warned about and left out from then on, `on_train_end` too."""

    def on_step_end(self, run: Run, record: dict[str, float]) -> None:
        """A step is done. record: its figures (docs/tracking.md)."""

    def on_evaluate(self, run: Run, figures: dict[str, float]) -> None:
        """An evaluation is done. figures: eval/NAME/accuracy, eval/NAME/version, ..."""

    def on_train_end(self, run: Run) -> None:
        """The run has ended, however it did."""


class Told:
    """A callback of one run, as a tracker."""

    def __init__(self, callback: Callback, run: Run) -> None:
        self._callback, self._run, self._has_failed = callback, run, False

    def log(self, step: int, scalars: dict[str, float]) -> None:
        is_evaluation = all(key.startswith(EVALUATION) for key in scalars)
        try:
            if is_evaluation:
                self._callback.on_evaluate(self._run, dict(scalars))
            else:
                self._callback.on_step_end(self._run, dict(scalars))
        except BaseException:
            self._has_failed = True  # its tracker is closed at once, and the run goes on
            raise

    def close(self) -> None:
        if not self._has_failed:
            self._callback.on_train_end(self._run)
