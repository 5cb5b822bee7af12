"""What the journal of a run holds, in three streams with one writer each.

    groups    written by the buffer    GROUP: the encoded trajectories of a group, write-ahead
    control   written by the driver    ENTRY: snapshots, events and decisions of the controller, in their order:
                                       task issued (Start), committed (GroupFinished), dropped with its reason
                                       (GroupFiltered, GroupFailed, Discard, Cancel), batch leased (Train), StepDone,
                                       WeightsLive; CHECKPOINT: steps done at a complete checkpoint
    trained   written by the driver    TRAINED: a step and its groups. What control knows of that goes with it

A group is in `groups` before its GroupFinished is in `control`, so what control says exists, exists.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from asyncrl.buffer import log
from asyncrl.control.codec import from_json, to_json
from asyncrl.control.history import Decisions, Entry, Snapshot
from asyncrl.control.messages import Decision, Event, Train
from asyncrl.errors import UserError

logger = logging.getLogger(__name__)

GROUP = 1
ENTRY = 2
CHECKPOINT = 3
TRAINED = 4

GROUPS_STREAM = "groups"
CONTROL_STREAM = "control"
TRAINED_STREAM = "trained"

Groups = tuple[tuple[int, int], ...]
_BATCH = msgspec.msgpack.Decoder(tuple[int, Groups])

KEPT_BYTES = 2**30
"""`journal.keep: auto` keeps everything until the journal is larger."""
_TRAINED_SEGMENT_BYTES = 2**20
_MOST_TRAINED_BYTES = 16 * 2**20
"""Some two million groups; what was trained before them is forgotten, if anything is."""


class ControlLog:
    """The driver's end. Every new segment begins with a snapshot, so that older ones can go."""

    def __init__(self, folder: Path, state: dict[str, object]) -> None:
        self._folder = folder
        # The snapshot goes on from what the writer before this one left, so that must not be lost while it stays.
        log.sync_last(folder, CONTROL_STREAM)
        # Never full by itself: a segment without a snapshot at its head would be of no use alone.
        self._writer = log.JournalWriter(folder, CONTROL_STREAM, segment_bytes=2**62)
        self._trained = log.JournalWriter(folder, TRAINED_STREAM, segment_bytes=_TRAINED_SEGMENT_BYTES)
        self._outgrown = False
        self._append(["snapshot", state])

    def event(self, event: Event) -> None:
        self._append(["event", to_json(event)])

    def decisions(self, decisions: list[Decision]) -> None:
        """All that one `decide` returned, in one record: a crash leaves all of it or nothing."""
        for decision in decisions:
            if isinstance(decision, Train):
                # First: should it be lost with a crash, it is decided anew, and the last record of a step counts.
                self._trained.append(TRAINED, msgspec.msgpack.encode([decision.step, decision.groups]))
        if decisions:
            self._append(["decisions", [to_json(decision) for decision in decisions]])

    def checkpoint(self, steps_done: int) -> None:
        """A checkpoint is complete."""
        self._writer.append(CHECKPOINT, msgspec.msgpack.encode(steps_done))

    def sync(self) -> None:
        """Make all of it durable; may be called from another thread."""
        self._trained.sync()
        self._writer.sync()

    def begin_segment(self, state: dict[str, object]) -> int:
        """Start a new segment with a snapshot; returns its number."""
        self._writer.roll()
        self._append(["snapshot", state])
        return self._writer.segment

    def may_forget(self, keep: str) -> bool:
        """Whether `journal.keep` lets go of what no recovery needs: at once, never, or once the journal is large."""
        if keep != "auto":
            return keep == "since_checkpoint"
        if outgrown := sum(path.stat().st_size for path in self._folder.glob("*.log")) > KEPT_BYTES:
            if not self._outgrown:
                logger.info(
                    "the journal has more than %d MiB: what no resume needs is deleted from now on; journal.keep=all "
                    "would keep it",
                    KEPT_BYTES // 2**20,
                )
            self._outgrown = True
        return outgrown

    def forget_before(self, segment: int) -> None:
        """Delete the segments before this one, once its snapshot is durable."""
        self.sync()
        for number in log.segments(self._folder, CONTROL_STREAM):
            if number < segment:
                log.segment_path(self._folder, CONTROL_STREAM, number).unlink(missing_ok=True)
        num_bytes = 0
        for number in reversed(log.segments(self._folder, TRAINED_STREAM)):
            path = log.segment_path(self._folder, TRAINED_STREAM, number)
            num_bytes += path.stat().st_size
            if num_bytes > _MOST_TRAINED_BYTES:
                path.unlink()

    def _append(self, entry: list[object]) -> None:
        self._writer.append(ENTRY, msgspec.msgpack.encode(entry))

    def close(self) -> None:
        self._trained.close()
        self._writer.close()


def control_bytes(folder: Path) -> int:
    """How much there is for `read_control` to read."""
    segments = log.segments(folder, CONTROL_STREAM)
    return sum(log.segment_path(folder, CONTROL_STREAM, number).stat().st_size for number in segments)


def read_control(folder: Path, read: Callable[[int], None] = lambda num_bytes: None) -> Iterator[Entry]:
    """Entries of the controller's history, oldest first. A segment whose snapshot was cut short is empty.

    `read` is told how many bytes have been read.
    """
    num_bytes = 0
    for record in log.read(folder, CONTROL_STREAM):
        num_bytes += record.position.num_bytes
        read(num_bytes)
        if record.kind == ENTRY:
            with _fitting(folder, CONTROL_STREAM, record):
                entry = _entry(*msgspec.msgpack.decode(record.payload))
            yield entry


def _entry(kind: str, body: Any) -> Entry:
    match kind:
        case "snapshot":
            return Snapshot(msgspec.convert(body, dict[str, Any]))
        case "event":
            return from_json(body)  # type: ignore[return-value]
        case "decisions":
            return Decisions(tuple(from_json(fields) for fields in body))  # type: ignore[misc]
    raise ValueError(f"no entry is called {kind!r:.40}")


@contextlib.contextmanager
def _fitting(folder: Path, stream: str, record: log.Record) -> Iterator[None]:
    """A record of another version, or of no asyncrl, is one sentence."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        path = log.segment_path(folder, stream, record.position.segment)
        raise UserError(
            f"{path}: the record at offset {record.position.offset} does not fit this version of asyncrl "
            f"({error!s:.200}); restore the file from a copy, or move {folder} away to go on from the newest checkpoint"
        ) from error


def trained(folder: Path) -> dict[tuple[int, int], int]:
    """The step that trained a group, or is about to, by (task, attempt)."""
    batches: dict[int, Groups] = {}
    for record in log.read(folder, TRAINED_STREAM):
        with _fitting(folder, TRAINED_STREAM, record):
            step, keys = _BATCH.decode(record.payload)
            batches[step] = keys
    # Journals from before there was this stream have it here, as far back as they go.
    for entry in read_control(folder):
        if isinstance(entry, Decisions):
            batches |= {decision.step: decision.groups for decision in entry.decisions if isinstance(decision, Train)}
    return {(task, attempt): step for step, keys in batches.items() for task, attempt in keys}


def groups(folder: Path) -> Iterator[log.Record]:
    """Records of committed groups, oldest first; the payload is what `rollout/trajectory.py` encodes."""
    return (record for record in log.read(folder, GROUPS_STREAM) if record.kind == GROUP)
