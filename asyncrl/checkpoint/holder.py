"""One shard of the newest snapshots in a process's own memory, outside the process whose death they are for."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

_KEEP_VERSIONS = 2
"""Two: the newest is incomplete if its sender died half-way, and then the one before it counts."""


@dataclass(frozen=True)
class Shard:
    """One shard of one snapshot, and how to read the whole."""

    attempt: str
    """Drawn anew for every snapshot: shards of two senders, the first dead half-way, never mix."""
    index: int
    data: np.ndarray
    """uint8 [num_bytes]"""
    crc: int
    layout: dict[str, Any]


def crc(data: np.ndarray) -> int:
    """CRC-32 of the bytes of a contiguous array; about 4 GB/s."""
    return zlib.crc32(data)


class Holder:
    """Keeps the newest two versions. A shard whose CRC does not match counts as missing."""

    def __init__(self) -> None:
        self._shards: dict[int, Shard] = {}

    def put(self, version: int, shard: Shard) -> bool:
        """Keep a copy of the shard. Versions from this one on are dropped: their sender was given up. Returns True."""
        older = sorted(v for v in self._shards if v < version)
        # Dropped before the copy is made: two versions in memory, not three.
        self._shards = {v: self._shards[v] for v in older[len(older) - _KEEP_VERSIONS + 1 :]}
        self._shards[version] = replace(shard, data=np.array(shard.data))
        return True

    def get(self, version: int) -> Shard | None:
        """The shard of that version; None if it is not here, or damaged."""
        shard = self._shards.get(version)
        return shard if shard is not None and crc(shard.data) == shard.crc else None

    def versions(self) -> dict[int, str]:
        """The attempt of every version whose shard is here and undamaged."""
        held = {version: self.get(version) for version in self._shards}
        return {version: shard.attempt for version, shard in held.items() if shard is not None}
