"""The step record: its names, its ratios, and the files `metrics.jsonl` and `summary.json`."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asyncrl.errors import naming
from asyncrl.metric_names import STEP_KEYS, has_answers
from asyncrl.storage.run_dir import lines, open_file, parsed, replace
from asyncrl.terminal.progress import duration

_RESULTS = {
    "reward/mean": "reward",
    "accuracy/mean": "accuracy",
    "distil/kl": "KL from the teacher",
    "trainer/loss": "loss",
    "pairs/accuracy": "accuracy on pairs",
}


def gauge_name(key: str) -> str:
    """Of a metric in Ray; Ray exports it with `ray_` before it."""
    return "asyncrl_" + re.sub(r"\W", "_", key, flags=re.ASCII)


def complete(record: Mapping[str, Any]) -> None:
    """Raises ValueError naming the STEP_KEYS that the record lacks."""
    missing = [key for key in STEP_KEYS if key not in record]
    if missing:
        raise ValueError(f"the record of step {record.get('step', '?')} lacks {', '.join(missing)}")


def shares(durations: Mapping[str, float], wall_s: float) -> dict[str, float]:
    """Seconds spent in named parts of `wall_s`, as ratios that sum to 1; the rest is `unaccounted`.

    Parts that together exceed the wall, because their clocks were read at other moments, are scaled to fit it.
    """
    parts = {name: max(0.0, seconds) for name, seconds in durations.items()}
    measured_s = sum(parts.values())
    total_s = max(measured_s, wall_s)
    if total_s <= 0:
        return {**dict.fromkeys(parts, 0.0), "unaccounted": 1.0}
    ratios = {name: seconds / total_s for name, seconds in parts.items()}
    return {**ratios, "unaccounted": max(0.0, 1.0 - sum(ratios.values()))}


def result(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """What came of a run, from its first step to its last, in one line; empty before there is a step."""
    if not last:
        return ""
    keys = _RESULTS if has_answers(last) else [key for key in _RESULTS if key != "trainer/loss"]
    shown = [
        f"{_RESULTS[key]} {first[key]:.3f} -> {last[key]:.3f}"
        for key in keys
        if first.get(key) is not None and last.get(key) is not None
    ]
    return f"{last['step'] + 1} steps in {duration(last['time_s'])} of training" + "".join(f", {one}" for one in shown)


class MetricsWriter:
    """Appends one JSON object per line; NaN and infinities become null. A line is whole in the file once written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, record: Mapping[str, Any]) -> None:
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(record), allow_nan=False) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Those that are there."""
        return read_lines(self._path)

    def truncate_after(self, step: int) -> None:
        """Keep only the lines of steps before `step`, the one that a resumed run does next."""
        kept = [record for record in read_lines(self._path) if record.get("step", step) < step]
        if kept or self._path.exists():
            replace(self._path, "".join(json.dumps(record) + "\n" for record in kept), durable=True)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none if it is missing. A line that a crash cut short is left out."""
    records: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError), open_file(path.parent, path.name) as file:
        records = [record for line in lines(file, path.parent, path.name) if (record := parsed(line))]
    return records


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write a JSON object so that the file is at every instant the old one or the new one; NaN becomes null."""
    replace(path, json.dumps(_plain(summary), allow_nan=False, indent=2) + "\n", durable=True)


def _plain(value: Any) -> Any:
    """Mappings and sequences as dicts and lists, numbers that JSON lacks as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
