"""Who was busy with what in the last minutes, drawn from the end of RUN_DIR/trace.json: a row per actor and lane."""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asyncrl.report.charts import plain, plot
from asyncrl.report.shapes import is_figure
from asyncrl.storage.run_dir import open_file, parsed

WINDOW_S = 120.0
_MOST_BARS = 100
"""In a row, so that they can be told apart: a run of short steps shows less than `WINDOW_S`."""
_TAIL_BYTES = 2**19
_ROW_PX, _AROUND_PX = 28, 110
_COLOURS = {
    "busy": "green",
    "paused": "violet",
    "idle": "amber",
    "wait for a batch": "amber",
    "wait for copies": "amber",
    "fetch": "teal",
    "pack": "teal",
    "no-grad forwards": "teal",
    "forward": "blue",
    "backward": "green",
    "optimizer": "violet",
    "stage": "teal",
    "push": "violet",
    "write": "grey",
}
_LANES = ("steps", "push", "checkpoint", "engine")
_MOST_ACTORS = 64
_LONGEST_NAMES = 60


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
    """A plot; empty if there is nothing to draw."""
    bars = read(run_dir)
    return _plot(window(bars)) if bars else ""


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


def _plot(shown: Shown) -> str:
    """Bars of one colour are one trace; seconds before the end, which is 0."""
    named: defaultdict[str, list[Bar]] = defaultdict(list)
    for bar in sorted(shown.bars, key=lambda bar: bar.name):
        named[_COLOURS.get(bar.name, "grey")].append(bar)
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plain(", ".join(dict.fromkeys(bar.name for bar in bars)), _LONGEST_NAMES),
            "marker": {"color": f"--{colour}"},
            "y": [bar.row for bar in bars],
            "base": [round(max(bar.start_s, shown.start_s) - shown.end_s, 3) for bar in bars],
            "x": [round(bar.end_s - max(bar.start_s, shown.start_s), 3) for bar in bars],
            "hovertext": [f"{plain(bar.name)}, {bar.end_s - bar.start_s:.2f} s" for bar in bars],
            "hoverinfo": "text",
        }
        for colour, bars in named.items()
    ]
    rows = {"categoryorder": "category ascending", "autorange": "reversed"}
    layout = {"barmode": "overlay", "xaxis": {"title": {"text": "seconds before the last"}}, "yaxis": rows}
    num_rows = len({bar.row for bar in shown.bars})
    drawn = plot("time of the actors", traces, layout, _AROUND_PX + _ROW_PX * num_rows)
    return f'<div class="wide" tabindex="0" role="region" aria-label="timeline">{drawn}</div>'
