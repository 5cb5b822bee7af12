"""Copies of the metrics for other viewers: wandb and TensorBoard. metrics.jsonl stays the record.

A tracker that fails is warned about once and left out; it never stops, delays or questions a run.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from asyncrl.recipe.schema import TrackRecipe

logger = logging.getLogger(__name__)

_WANDB_START_S = 60.0
_WANDB_FINISH_S = 60.0


class _Tracker(Protocol):
    def log(self, step: int, scalars: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """The trackers that a recipe asks for. `config` is the resolved recipe, `name` the run's name on a dashboard."""

    def __init__(self, run_dir: Path, track: TrackRecipe, config: Mapping[str, Any], name: str) -> None:
        self._trackers: dict[str, _Tracker] = {}
        if track.wandb != "off":
            self._start("wandb", lambda: _Wandb(run_dir, track, config, name))
        if track.tensorboard:
            self._start("TensorBoard", lambda: _TensorBoard(run_dir / "tensorboard"))

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Send the finite numbers of a step's record."""
        scalars = {key: float(value) for key, value in record.items() if _is_number(value)}
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(step, scalars)
            except Exception as error:
                logger.warning("%s no longer takes metrics: %s", name, _sentence(error))
                with contextlib.suppress(Exception):
                    tracker.close()
                del self._trackers[name]

    def close(self) -> None:
        """Send what is left; at most a minute."""
        for name, tracker in self._trackers.items():
            try:
                tracker.close()
            except Exception as error:
                logger.warning("%s did not close: %s", name, _sentence(error))
        self._trackers = {}

    def _start(self, name: str, make: Any) -> None:
        try:
            self._trackers[name] = make()
        except Exception as error:
            logger.warning("the run goes on without %s: %s", name, _sentence(error))


class _Wandb:
    """One wandb run; its id is kept in run_dir/wandb_id, so a resumed run goes on in the same one."""

    def __init__(self, run_dir: Path, track: TrackRecipe, config: Mapping[str, Any], name: str) -> None:
        if track.wandb == "offline":
            # In the environment, not only an argument: wandb's own service reads it, and must not ask for a key.
            os.environ["WANDB_MODE"] = "offline"
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        id_file = run_dir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        settings = wandb.Settings(
            init_timeout=_WANDB_START_S,
            login_timeout=_WANDB_START_S,
            finish_timeout=_WANDB_FINISH_S,
            # wandb's capture of the terminal would fight with the live view.
            console="off",
            silent=True,
        )
        self._teardown = wandb.teardown
        self._run = wandb.init(
            project=track.project,
            name=name,
            id=id_file.read_text().strip(),
            resume="allow",
            mode=track.wandb,
            dir=str(run_dir),
            config=dict(config),
            settings=settings,
        )

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def close(self) -> None:
        try:
            self._run.finish()
        finally:
            # At exit it would print a traceback if its service is gone: who stops a job signals that too.
            self._teardown()


class _TensorBoard:
    """TensorBoard's own event writer: torch's would load torch into the driver for nothing."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._session = event_pb2.Event, event_pb2.SessionLog
        self._summary = summary_pb2.Summary
        self._writer = EventFileWriter(str(folder))
        self._started = False

    def log(self, step: int, scalars: dict[str, float]) -> None:
        now = time.time()
        if not self._started:
            # Tells TensorBoard to forget the steps from here on of a run that was resumed.
            start = self._session(status=self._session.START)
            self._writer.add_event(self._event(wall_time=now, step=step, session_log=start))
            self._started = True
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._writer.add_event(self._event(wall_time=now, step=step, summary=self._summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
