"""Copies of the metrics and of some trajectories for other viewers. metrics.jsonl stays the record.

    recorder --log--> queue of each tracker --> its thread: start, log, close
A tracker has a thread of its own: what it waits for (a server, a disk) holds up neither the run nor the others. One
that fails is warned about once and left out; it never stops, delays or questions a run.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from asyncrl.observe import backends
from asyncrl.plugins import load_object
from asyncrl.recipe.schema import TrackRecipe

logger = logging.getLogger(__name__)

_CLOSE_S = 75.0
_MOST_WAITING = 1000
_MOST_ROWS = 40
_MOST_CHARS = 2000
_TABLES_PER_RUN = 20


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of the run."""

    dir: Path
    name: str
    """Of the run directory: the same after a resume."""
    id: str
    """8 hex digits, the same after a resume."""
    project: str
    config: Mapping[str, Any]
    """The resolved recipe."""

    @classmethod
    def of(cls, run_dir: Path, project: str, config: Mapping[str, Any]) -> TrackedRun:
        """The id is kept in the run directory."""
        id_file = run_dir / "tracking_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        return cls(run_dir, run_dir.name, id_file.read_text().strip(), project, config)


class Tracker(Protocol):
    """Made with a TrackedRun. Its methods are called one after the other, in a thread of its own, and may raise."""

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """The finite numbers of a step's record."""

    def log_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Some of the newest trajectories: step, task, reward, versions, prompt, completion. May be left out."""

    def close(self) -> None:
        """Send what is left."""


class Trackers:
    """The trackers that a recipe asks for, and those of `more`, by name."""

    def __init__(
        self,
        run: TrackedRun,
        track: TrackRecipe,
        max_steps: int,
        base_dir: Path,
        more: Mapping[str, Callable[[], Tracker]] | None = None,
    ) -> None:
        made: dict[str, Callable[[], Tracker]] = {}
        if track.wandb != "off":
            backends.quiet_wandb(track.wandb)
            made["wandb"] = lambda: backends.make("wandb_run", "Wandb", run, track.wandb)
        if track.tensorboard:
            made["TensorBoard"] = lambda: backends.make("tensorboard", "TensorBoard", run)
        for spec in track.also:
            made[spec] = _maker(spec, run, base_dir)
        self._lanes = [_Lane(name, make) for name, make in {**made, **(more or {})}.items()]
        self._samples = _Samples(max_steps)

    def log(self, step: int, record: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        """Hand over a step's record and some of its trajectories; returns at once."""
        scalars = {key: float(value) for key, value in record.items() if _is_number(value)}
        rows = self._samples.add(step, samples)
        for lane in self._lanes:
            lane.send(lambda tracker: tracker.log(step, scalars))
            if rows:
                lane.send(_log_samples(step, rows))

    def close(self) -> None:
        """Send what is left; all side by side, for a little more than a minute at most."""
        until_s = time.monotonic() + _CLOSE_S
        step, rows = self._samples.rest()
        for lane in self._lanes:
            if rows:
                lane.send(_log_samples(step, rows))
            lane.end()
        for lane in self._lanes:
            lane.join(until_s)
        self._lanes = []


class _Lane:
    """One tracker and its thread. Waits for: calls. Unblocked by: the run's steps, and its end."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._behind = False
        self._thread = threading.Thread(target=self._live, args=(make,), name=f"tracker {name}", daemon=True)
        self._thread.start()

    def send(self, call: Callable[[Tracker], None]) -> None:
        if not self._thread.is_alive():
            return
        if self._calls.qsize() < _MOST_WAITING:
            self._calls.put(call)
        elif not self._behind:
            self._behind = True
            logger.warning("%s is %d records behind; it will lack some of those that follow", self._name, _MOST_WAITING)

    def end(self) -> None:
        self._calls.put(None)

    def join(self, until_s: float) -> None:
        self._thread.join(max(0.0, until_s - time.monotonic()))
        if self._thread.is_alive():
            logger.warning("%s did not close within %.0f s, and is left behind", self._name, _CLOSE_S)

    def _live(self, make: Callable[[], Tracker]) -> None:
        try:
            tracker = make()
        except (Exception, SystemExit) as error:
            logger.warning("the run goes on without %s: %s", self._name, _sentence(error))
            return
        while (call := self._calls.get()) is not None:
            try:
                call(tracker)
            except (Exception, SystemExit) as error:
                logger.warning("%s no longer takes metrics: %s", self._name, _sentence(error))
                with contextlib.suppress(Exception, SystemExit):
                    tracker.close()
                return
        try:
            tracker.close()
        except (Exception, SystemExit) as error:
            logger.warning("%s did not close: %s", self._name, _sentence(error))


class _Samples:
    """The newest trajectories, handed out some twenty times in a run, and at its end."""

    def __init__(self, max_steps: int) -> None:
        self._every = max(1, max_steps // _TABLES_PER_RUN)
        self._rows: deque[dict[str, Any]] = deque(maxlen=_MOST_ROWS)
        self._unsent = False

    def add(self, step: int, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rows to send now, if any."""
        self._rows.extend(_row(step, sample) for sample in samples)
        self._unsent |= bool(samples)
        return self.rest()[1] if step % self._every == 0 else []

    def rest(self) -> tuple[int, list[dict[str, Any]]]:
        """The step of the newest row, and all rows; none if the newest was sent."""
        rows = list(self._rows) if self._unsent else []
        self._unsent = False
        return (rows[-1]["step"] if rows else 0), rows


def _row(step: int, sample: Mapping[str, Any]) -> dict[str, Any]:
    versions = [version for version in sample.get("versions", ()) if version >= 0]
    low, high = min(versions, default=-1), max(versions, default=-1)
    return {
        "step": step,
        "task": sample.get("task"),
        "reward": sample.get("reward"),
        "versions": str(low) if low == high else f"{low} to {high}",
        "prompt": _cut(str(sample.get("prompt", ""))),
        "completion": _cut(str(sample.get("completion", ""))),
    }


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARS else text[:_MOST_CHARS] + " … (cut)"


def _log_samples(step: int, rows: list[dict[str, Any]]) -> Callable[[Tracker], None]:
    def call(tracker: Tracker) -> None:
        if take := getattr(tracker, "log_samples", None):
            take(step, rows)

    return call


def _maker(spec: str, run: TrackedRun, base_dir: Path) -> Callable[[], Tracker]:
    """`mlflow`, `trackio`, or a class of the user's by path."""
    if ":" in spec:
        return lambda: load_object(spec, base_dir, "track.also")(run)
    return lambda: backends.make(spec, spec.capitalize(), run)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
