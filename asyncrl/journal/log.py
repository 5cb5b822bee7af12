"""The journal: an append-only file of framed records, each with its length and a CRC.

Frame, little-endian: magic `AJ01`, kind (1 byte), payload length (4), CRC-32 of the payload (4), CRC-32 of all the
above (4), payload. A torn tail is cut at the last whole frame; a frame that does not match one of its CRCs is
reported, never decoded: a damaged length cannot pass for a torn tail.

First form: the buffer appends every committed group and every batch taken. It is what `asyncrl` can say about
a run afterwards; recovery restarts from checkpoints.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"AJ01"
_HEADER = struct.Struct("<4sBII")
_HEADER_CRC = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _HEADER_CRC.size

GROUP = 1
"""Payload: an encoded group (rollout/trajectory.py)."""
LEASE = 2
"""Payload: msgpack [step, [[task, attempt], ...]]: the batch of a step."""


class JournalCorrupt(RuntimeError):
    """A record before the tail does not match its CRC; the message names file and offset."""


@dataclass(frozen=True)
class Record:
    kind: int
    payload: bytes


class JournalWriter:
    """Appends records to a new segment; segments are numbered and never rewritten."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        newest = max((int(p.stem.removeprefix("segment_")) for p in folder.glob("segment_*.log")), default=-1)
        self.path = folder / f"segment_{newest + 1:06d}.log"
        self._file = open(self.path, "xb")  # noqa: SIM115 - lives as long as the writer

    def append(self, kind: int, payload: bytes) -> None:
        """Hand one record to the operating system (no fsync: it survives the process, not the machine)."""
        header = _HEADER.pack(_MAGIC, kind, len(payload), zlib.crc32(payload))
        self._file.write(header + _HEADER_CRC.pack(zlib.crc32(header)) + payload)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(folder: Path) -> Iterator[Record]:
    """All whole records, oldest first. Raises JournalCorrupt at a damaged record that is not a torn tail."""
    for path in sorted(folder.glob("segment_*.log")):
        yield from _read_segment(path)


def _read_segment(path: Path) -> Iterator[Record]:
    data = path.read_bytes()
    offset = 0
    while offset < len(data):
        if len(data) - offset < _HEADER_BYTES:
            return
        magic, kind, length, crc = _HEADER.unpack_from(data, offset)
        if magic != _MAGIC:
            raise JournalCorrupt(f"{path.name}: no record starts at offset {offset}")
        (header_crc,) = _HEADER_CRC.unpack_from(data, offset + _HEADER.size)
        if zlib.crc32(data[offset : offset + _HEADER.size]) != header_crc:
            raise JournalCorrupt(f"{path.name}: the record at offset {offset} does not match its CRC")
        start = offset + _HEADER_BYTES
        if start + length > len(data):
            return
        payload = data[start : start + length]
        if zlib.crc32(payload) != crc:
            raise JournalCorrupt(f"{path.name}: the record at offset {offset} does not match its CRC")
        yield Record(kind, payload)
        offset = start + length
