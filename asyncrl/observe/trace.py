"""Where time goes, as spans: RUN_DIR/trace.json, a row per actor and lane, for ui.perfetto.dev or chrome://tracing.

    actor: span("backward") ... --take()--> driver, with each step --> TraceFile
The file is in Chrome's trace event format (JSON array): events are appended, and what a crash cut off is still read.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple, Protocol

from asyncrl.errors import naming

MAIN = "steps"
_MOST = 20_000
"""Spans that a process keeps until they are asked for."""


class Span(NamedTuple):
    """What happened in a lane of an actor; seconds since the epoch, seconds."""

    lane: str
    name: str
    start_s: float
    duration_s: float


class Exporter(Protocol):
    """Another place that spans go to (`otel.py`)."""

    def write(self, actor: str, spans: Sequence[Span]) -> None: ...

    def close(self) -> None: ...


_EPOCH_S = time.time() - time.monotonic()
_spans: list[Span] = []
_free: defaultdict[str, list[int]] = defaultdict(lambda: [0])
"""Numbers of lanes that no one is in, as a heap; the highest stands for all above it too."""


def now() -> float:
    """Seconds since the epoch as of this process's start, from a clock that nobody sets."""
    return _EPOCH_S + time.monotonic()


def add(name: str, start_s: float, end_s: float, lane: str = MAIN) -> None:
    """A span that has ended; times as of `now`. Those that nobody takes are forgotten."""
    if len(_spans) < _MOST:
        _spans.append(Span(lane, name, start_s, max(0.0, end_s - start_s)))


@contextmanager
def span(name: str, lane: str = MAIN) -> Iterator[None]:
    """The time of the block; blocks of one lane follow or enclose one another."""
    start_s = now()
    try:
        yield
    finally:
        add(name, start_s, now(), lane)


@contextmanager
def free_lane(kind: str) -> Iterator[str]:
    """The first lane `<kind> <number>` that no one else is in, for blocks that run side by side."""
    free = _free[kind]
    number = heappop(free)
    if not free:
        heappush(free, number + 1)
    try:
        yield f"{kind} {number}"
    finally:
        heappush(free, number)


def take() -> list[Span]:
    """This process's spans since the last call."""
    taken = _spans[:]
    del _spans[: len(taken)]
    return taken


class TraceFile:
    """Appends to the file; goes on with one that is there. `also` gets the same spans."""

    def __init__(self, path: Path, also: Exporter | None = None) -> None:
        self._path, self._also = path, also
        self._named: set[tuple[str, str]] = set()
        with naming(path):
            text = path.read_text().rstrip() if path.exists() else "["
            if text.endswith("]"):
                text = text[:-1].rstrip().removesuffix(",")
                text += "," if text.endswith("}") else ""
            path.write_text(text + "\n")

    def write(self, actor: str, spans: list[Span]) -> None:
        if self._also:
            self._also.write(actor, spans)
        events = []
        for span in spans:
            where = {"pid": _number(actor), "tid": _number(span.lane)}
            if (actor, span.lane) not in self._named:
                self._named.add((actor, span.lane))
                events.append({"ph": "M", "name": "process_name", **where, "args": {"name": actor}})
                events.append({"ph": "M", "name": "thread_name", **where, "args": {"name": span.lane}})
            times = {"ts": round(span.start_s * 1e6), "dur": round(span.duration_s * 1e6)}
            events.append({"ph": "X", "name": span.name, **where, **times})
        with naming(self._path), self._path.open("a") as file:
            file.write("".join(json.dumps(event) + ",\n" for event in events))

    def close(self) -> None:
        """Make it whole JSON."""
        if self._also:
            self._also.close()
        with naming(self._path), self._path.open("rb+") as file:
            file.seek(-2, os.SEEK_END)
            if file.read() == b",\n":
                file.seek(-2, os.SEEK_END)
                file.truncate()
            file.write(b"\n]\n")


def _number(name: str) -> int:
    """The format wants numbers; the same for the same name after a resume."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF
