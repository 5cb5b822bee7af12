"""What goes between trainer and generators with a weight push: the words of both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class WeightUpdate:
    """One push, as a replica receives it: the version that becomes live and the backend's layout of the bytes."""

    version: int
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishReport:
    """What a push cost."""

    version: int
    transfer_s: float
    pause_s: float
    """The longest that a replica's generation stood still; rank 0 knows it."""
    num_bytes: int
    """That each engine worker received, or read, from this rank."""


class Replicas(Protocol):
    """The generators as the channel sees them; blocking calls with a deadline inside (`weights/replicas.py`)."""

    num_workers: int
    """Engine workers over all replicas: the group has one rank more."""

    def join(self, init_info: dict[str, Any]) -> None: ...

    def update(self, update: WeightUpdate, *, rolling: bool = False) -> Mapping[str, float]:
        """Pause, receive, load, stamp, resume on every replica, all at once or one after the other; returns the
        seconds each stood still."""
        ...
