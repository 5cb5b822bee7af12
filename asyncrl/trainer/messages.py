"""What goes between the driver and the trainer actor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncrl.checkpoint.snapshots import Snapshots
from asyncrl.control.messages import Train
from asyncrl.observe.trace import Span
from asyncrl.trainer.backend import StepReport


@dataclass(frozen=True)
class TrainResult:
    """A step, and where its time went (seconds)."""

    report: StepReport
    busy_s: float
    wait_publish_s: float
    wait_copy_s: float
    """The step stood still until a checkpoint or snapshot had its copy of the weights."""
    spans: list[Span]
    """Of this rank, since the result before."""
    probe: list[float] | None = None
    """Log-probs of the text that weights are verified with, by the new weights; None if it was not asked for."""


@dataclass(frozen=True)
class Loaded:
    """What a rank has to say once it can train."""

    process: dict[str, Any]
    probes: tuple[list[float], list[float]]
    """Log-probs of the text that weights are verified with: by the initial model, and by where it starts from."""
    kernels: str
    """Which ones a GPU takes."""


@dataclass(frozen=True)
class ResumePoint:
    """Where a trainer starts from: a checkpoint folder or a snapshot in memory, else the initial model; then the
    batches that were trained since, in order."""

    version: int
    folder: Path | None
    snapshots: Snapshots | None
    batches: tuple[Train, ...] = ()
    live: int = -1
    """Version that the generators hold: it stays at hand for one that joins them."""

    @property
    def is_initial(self) -> bool:
        return self.folder is None and self.snapshots is None and not self.batches


def role(rank: int) -> str:
    """Name of a rank's process."""
    return f"trainer-{rank}" if rank else "trainer"
