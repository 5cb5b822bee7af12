"""Who was busy with what in the last minutes, drawn from the end of RUN_DIR/trace.json: a row per actor and lane."""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from asyncrl.observe.shapes import is_figure
from asyncrl.storage.run_dir import open_file, parsed
from asyncrl.terminal.progress import duration

WINDOW_S = 120.0
_MOST_BARS = 100
"""In a row, so that they can be told apart: a run of short steps shows less than `WINDOW_S`."""
_TAIL_BYTES = 2**19
_WIDTH, _ROW, _LEFT, _RIGHT, _TOP, _BOTTOM = 1120, 26, 170, 10, 6, 24
_LEAST_PX = 1.0
_COLOURS = {
    "busy": "green",
    "paused": "violet",
    "idle": "amber",
    "wait for a batch": "amber",
    "wait for copies": "amber",
    "fetch": "teal",
    "pack": "teal",
    "passes without gradient": "teal",
    "forward": "blue",
    "backward": "green",
    "optimizer": "violet",
    "stage": "teal",
    "push": "violet",
    "write": "grey",
}
_LANES = ("steps", "push", "checkpoint", "engine")
_MOST_ACTORS = 64


@dataclass(frozen=True)
class Bar:
    """A span of one row; seconds since the epoch."""

    row: str
    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Shown:
    """What is drawn: from when to when, and of the bars those that reach into it."""

    start_s: float
    end_s: float
    bars: Sequence[Bar]


def timeline(run_dir: Path) -> str:
    """An SVG with its legend; empty if there is nothing to draw."""
    bars = read(run_dir)
    return _svg(window(bars)) if bars else ""


def read(run_dir: Path) -> list[Bar]:
    """The last bars. Only the end of the file is read: it may have grown for days."""
    try:
        with open_file(run_dir, "trace.json") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).splitlines()
    except FileNotFoundError:
        return []
    names = _names()
    return [bar for line in lines if (bar := _bar(line, names))]


def window(bars: Sequence[Bar]) -> Shown:
    """The last `WINDOW_S` seconds, or as little as it takes for no row to have more than `_MOST_BARS`."""
    end_s = max(bar.end_s for bar in bars)
    starts: defaultdict[str, list[float]] = defaultdict(list)
    for bar in bars:
        starts[bar.row].append(bar.start_s)
    crowded = (sorted(row)[-_MOST_BARS] for row in starts.values() if len(row) > _MOST_BARS)
    start_s = max(end_s - WINDOW_S, min(bar.start_s for bar in bars), *crowded)
    return Shown(start_s, end_s, [bar for bar in bars if bar.end_s > start_s])


def _names() -> dict[int, str]:
    """Of the numbers that stand for actors and lanes in the file, whose names are told only once, at the beginning."""
    actors = ["trainer", *(f"trainer-{n}" for n in range(1, _MOST_ACTORS))]
    actors += [f"generator-{n}" for n in range(_MOST_ACTORS)]
    return {zlib.crc32(name.encode()) & 0x7FFFFFFF: name for name in (*actors, *_LANES)}


def _bar(line: bytes, names: Mapping[int, str]) -> Bar | None:
    """None for a line that is cut off, or of a lane that is not drawn."""
    try:
        event = parsed(line.rstrip(b", \n"))
        actor, lane = names[event["pid"]], names[event["tid"]]
        times_us = event["ts"], event["ts"] + event["dur"]
        if not all(map(is_figure, times_us)) or not isinstance(event["name"], str):
            return None
        return Bar(f"{actor} {lane}", event["name"], times_us[0] / 1e6, times_us[1] / 1e6)
    except (KeyError, TypeError):
        return None


def _svg(shown: Shown) -> str:
    start_s, end_s, bars = shown.start_s, shown.end_s, shown.bars
    rows = sorted({bar.row for bar in bars})
    scale = (_WIDTH - _LEFT - _RIGHT) / max(end_s - start_s, 1e-3)
    height = _TOP + _ROW * len(rows) + _BOTTOM
    parts = []
    for number, row in enumerate(rows):
        y = _TOP + number * _ROW
        parts.append(f'<text x="{_LEFT - 8}" y="{y + _ROW / 2 + 4}" text-anchor="end">{escape(row)}</text>')
        for bar in (bar for bar in bars if bar.row == row):
            x = _LEFT + (max(bar.start_s, start_s) - start_s) * scale
            width = max((bar.end_s - max(bar.start_s, start_s)) * scale, _LEAST_PX)
            tip = f"{bar.name}, {bar.end_s - bar.start_s:.2f} s, {duration(end_s - bar.start_s)} before the last"
            parts.append(
                f'<rect class="layer" style="--c:var(--{_COLOURS.get(bar.name, "grey")})" x="{x:.1f}" y="{y + 3}" '
                f'width="{width:.1f}" height="{_ROW - 6}"><title>{escape(tip)}</title></rect>'
            )
    shown_s = end_s - start_s
    for share in (0.0, 0.5, 1.0):
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[share]
        x = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        text = f"{duration((1 - share) * shown_s)} ago" if share < 1 else "last seen"
        parts.append(f'<text x="{x:.0f}" y="{height - 6}" text-anchor="{anchor}">{text}</text>')
    names: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted({bar.name for bar in bars}):
        names[_COLOURS.get(name, "grey")].append(name)
    legend = "".join(
        f'<span><i style="--c:var(--{colour})"></i>{escape(", ".join(alike))}</span>' for colour, alike in names.items()
    )
    drawn = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="time of the actors">{"".join(parts)}</svg>'
    scrolled = f'<div class="wide" tabindex="0" role="region" aria-label="timeline">{drawn}</div>'
    return f'<div class="legend">{legend}</div>{scrolled}'
