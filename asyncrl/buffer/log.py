"""The journal's files: append-only segments of framed records, each with its length and a CRC.

    journal/<stream>_000000.log, <stream>_000001.log, …    a writer always begins a new segment
    frame, little-endian: magic `AJ01`, kind (1 byte), payload length (4), CRC-32 of the payload (4),
                          CRC-32 of all the above (4), payload

A crash can cut the last frame of a segment short, or leave zeros that were never written: such a tail is cut at the
last whole frame. Anything else that does not match its CRCs is reported with segment and offset, never decoded; the
header has a CRC of its own, so a damaged length cannot pass for a torn tail.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from asyncrl.errors import RunFailed, UserError, remedy
from asyncrl.storage import run_dir

_MAGIC = b"AJ01"
_HEADER = struct.Struct("<4sBII")
_HEADER_CRC = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _HEADER_CRC.size
_SECTOR_BYTES = 512
"""A disk writes no less: what it never wrote begins at a multiple of this, and reads as zeros up to the end."""
_MOST_PAYLOAD_BYTES = 2**30
_SEVERAL_BYTES = 2**20

SEGMENT_BYTES = 64 * 2**20
"""A segment that has reached this size is closed, and the next one begun."""


class JournalCorrupt(UserError):
    """A record before the tail does not match its CRC; the message names file and offset."""


class JournalWriteError(RunFailed):
    """A record could not be written (disk full, read-only, …); the file still ends at the last whole frame."""


@dataclass(frozen=True)
class Position:
    """Where a payload lies."""

    segment: int
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class Record:
    kind: int
    payload: bytes
    position: Position


class JournalWriter:
    """Appends records to a stream. One thread appends; `sync` may be called from another."""

    def __init__(self, folder: Path, stream: str, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder, self._stream, self._segment_bytes = folder, stream, segment_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._sync_error: OSError | None = None
        self._open(max(segments(folder, stream), default=-1) + 1)

    def _open(self, segment: int) -> None:
        path = segment_path(self._folder, self._stream, segment)
        with _named(path):
            # As an object it is closed with its writer, whoever forgets to.
            file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644), "ab", 0)
            run_dir.sync(self._folder)
        self._file, self.segment, self._end = file, segment, 0

    def append(self, kind: int, payload: bytes | memoryview) -> Position:
        """Hand one record to the operating system: it survives this process; after `sync`, the machine too."""
        if self._end >= self._segment_bytes:
            self.roll()
        header = _HEADER.pack(_MAGIC, kind, len(payload), zlib.crc32(payload))
        frame = [memoryview(header + _HEADER_CRC.pack(zlib.crc32(header))), memoryview(payload).cast("B")]
        path = segment_path(self._folder, self._stream, self.segment)
        with _named(path):
            try:
                while frame:
                    written = os.writev(self._file.fileno(), frame)
                    while frame and written >= len(frame[0]):
                        written -= len(frame.pop(0))
                    frame[:1] = [part[written:] for part in frame[:1]]
            except OSError:
                os.ftruncate(self._file.fileno(), self._end)
                raise
        position = Position(self.segment, self._end + _HEADER_BYTES, len(payload))
        self._end += _HEADER_BYTES + len(payload)
        return position

    def sync(self) -> None:
        """Make everything appended before this call durable. Once it has failed, it always fails."""
        with self._lock, _named(segment_path(self._folder, self._stream, self.segment)):
            # The system may report bytes that it lost only once: the next fsync would succeed without them.
            if self._sync_error is not None:
                raise self._sync_error
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self._sync_error = error
                raise

    def roll(self) -> None:
        """Close the segment, durably, and begin the next."""
        self.sync()
        with self._lock:
            closed = self._file
            self._open(self.segment + 1)
            closed.close()

    def close(self) -> None:
        self.sync()
        self._file.close()


def segment_path(folder: Path, stream: str, segment: int) -> Path:
    return folder / f"{stream}_{segment:06d}.log"


def segments(folder: Path, stream: str) -> list[int]:
    """Numbers of the segments that exist, rising."""
    named = re.compile(rf"{stream}_([0-9]{{6}}|[1-9][0-9]{{6,11}})\.log")
    found = map(named.fullmatch, run_dir.names(folder.parent, folder.name))
    return sorted(int(name[1]) for name in found if name)


def read(folder: Path, stream: str) -> Iterator[Record]:
    """All whole records, oldest first. Raises JournalCorrupt at a damaged one."""
    for segment in segments(folder, stream):
        yield from _read_segment(segment_path(folder, stream, segment), segment)


def _opened(path: Path) -> BinaryIO:
    return run_dir.open_file(path.parents[1], f"{path.parent.name}/{path.name}")


def read_at(folder: Path, stream: str, position: Position) -> bytes:
    """The payload at a position that `append` or `read` gave. Raises JournalCorrupt if it is damaged."""
    path, offset = segment_path(folder, stream, position.segment), position.offset - _HEADER_BYTES
    with _opened(path) as file:
        header = os.pread(file.fileno(), _HEADER_BYTES, offset)
        payload = os.pread(file.fileno(), position.num_bytes, position.offset)
    if not _is_header(header) or _HEADER.unpack_from(header)[2:] != (len(payload), zlib.crc32(payload)):
        raise _corrupt(path, offset)
    return payload


def sync_last(folder: Path, stream: str) -> None:
    """Make durable what a writer that died had handed to the operating system."""
    for segment in segments(folder, stream)[-1:]:
        run_dir.sync(segment_path(folder, stream, segment))


def _read_segment(path: Path, segment: int) -> Iterator[Record]:
    with _opened(path) as file:
        size, offset = os.fstat(file.fileno()).st_size, 0
        while (end := offset + _HEADER_BYTES) <= size:
            start, header = end, file.read(_HEADER_BYTES)
            if _is_header(header):
                _, kind, length, crc = _HEADER.unpack_from(header)
                if (end := start + length) > size:
                    return
                payload = file.read(min(length, _MOST_PAYLOAD_BYTES))
                if len(payload) == length and zlib.crc32(payload) == crc:
                    yield Record(kind, payload, Position(segment, start, length))
                    offset = end
                    continue
            if not _only_zeros(file, max(offset, (end - 1) // _SECTOR_BYTES * _SECTOR_BYTES), size):
                raise _corrupt(path, offset)
            return


def _only_zeros(file: BinaryIO, start: int, stop: int) -> bool:
    """False too for more of them than a record that was never written has."""
    if stop - start > _MOST_PAYLOAD_BYTES:
        return False
    file.seek(start)
    return all(not file.read(min(_SEVERAL_BYTES, stop - at)).strip(b"\0") for at in range(start, stop, _SEVERAL_BYTES))


def _is_header(data: bytes | memoryview) -> bool:
    own = data[: _HEADER.size]
    return own[:4] == _MAGIC and data[_HEADER.size :] == _HEADER_CRC.pack(zlib.crc32(own))


def _corrupt(path: Path, offset: int) -> JournalCorrupt:
    return JournalCorrupt(
        f"{path}: the record at offset {offset} is damaged (it does not match its CRC); restore the file from a copy, "
        f"or move {path.parent} away to go on from the newest checkpoint, at the cost of what was done since"
    )


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns an OSError into a sentence that names the file."""
    try:
        yield
    except OSError as error:
        raise JournalWriteError(
            f"the journal cannot be written: {path}: {error.strerror}; {remedy(error)} and resume"
        ) from error
