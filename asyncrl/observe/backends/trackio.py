"""trackio: its own local store (TRACKIO_DIR), or the server or Space that its environment variables name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas
import trackio

if TYPE_CHECKING:
    from asyncrl.observe.trackers import TrackedRun


class Trackio:
    def __init__(self, run: TrackedRun) -> None:
        # Runs are told apart by their names only.
        self._run = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id}",
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def log_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        self._run.log({"samples": trackio.Table(dataframe=pandas.DataFrame(rows))}, step=step)

    def close(self) -> None:
        self._run.finish()
