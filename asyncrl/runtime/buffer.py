"""The buffer actor: finished groups, as bytes, between the generators and the trainer.

It never decodes a trajectory. What it holds is decided by the controller: groups come with `put`, go to the
trainer with `take`, and leave with `drop`. Back-pressure is the controller's slots; over `capacity` is a bug.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import ray

from asyncrl.journal.log import GROUP, LEASE, JournalWriter

Key = tuple[int, int]
"""(task, attempt) of a group."""


class Buffer:
    """Plain class; `BufferActor` is its Ray shell."""

    def __init__(self, journal_dir: Path, capacity: int) -> None:
        self._frames: dict[Key, bytes] = {}
        self._capacity = capacity
        self._journal = JournalWriter(journal_dir)

    def put(self, task: int, attempt: int, frame: bytes) -> None:
        """Keep a finished group; returns once it is in the journal. Raises RuntimeError over capacity."""
        if len(self._frames) >= self._capacity:
            raise RuntimeError(f"the buffer holds {self._capacity} groups already; task {task} does not fit")
        self._journal.append(GROUP, frame)
        self._frames[(task, attempt)] = frame

    def take(self, step: int, keys: list[Key]) -> list[bytes]:
        """The encoded groups of batch `step`, in order; they stay here until `drop`."""
        frames = [self._frames[key] for key in keys]
        self._journal.append(LEASE, msgspec.msgpack.encode([step, keys]))
        return frames

    def drop(self, keys: list[Key]) -> None:
        """Forget groups: trained, stale or obsolete. Unknown ones are ignored (a cancelled group may not be here)."""
        for key in keys:
            self._frames.pop(key, None)


BufferActor = ray.remote(num_cpus=0)(Buffer)
