"""The files of a run for someone who looks again and again: what has not changed is not read again.

    metrics.jsonl, samples.jsonl    grow: what is new at their end is read; a resume cuts them, then all is read anew
    recipe.yaml, summary.json, status.json    are small: read when asked for
Any of them may be missing or cut short: the run crashed, or still goes on.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from asyncrl.observe.health import Health
from asyncrl.run_dir import json_object, open_file, parsed, text

_STEP = re.compile(rb'\{"step": (\d+)')
"""How a line of samples.jsonl begins. Thousands of them are long, and a few are shown."""

Signature = tuple[int, int, int] | None


class Growing:
    """The whole lines of a file that grows."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self._place = run_dir, name
        self._file_id, self._end = 0, 0

    def new(self) -> tuple[bool, list[tuple[int, bytes]]]:
        """Whether it is another file than at the last call, or was cut; and the lines since, with their offsets."""
        try:
            file = open_file(*self._place)
        except FileNotFoundError:
            anew, self._file_id, self._end = self._end > 0, 0, 0
            return anew, []
        with file:
            stat = os.fstat(file.fileno())
            anew = stat.st_ino != self._file_id or stat.st_size < self._end
            if anew:
                self._file_id, self._end = stat.st_ino, 0
            file.seek(self._end)
            data = file.read(stat.st_size - self._end)
        lines = []
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            lines.append((self._end, line))
            self._end += len(line)
        return anew, lines


class RunFiles:
    """Call `refresh`, then read the rest."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.records: list[dict[str, Any]] = []
        """Of the steps done."""
        self.health = Health()
        """Has checked all records."""
        self._metrics, self._samples = Growing(run_dir, "metrics.jsonl"), Growing(run_dir, "samples.jsonl")
        self._sample_lines: dict[int, list[tuple[int, int]]] = {}
        """Of each step the offsets and lengths of its samples."""

    def refresh(self) -> None:
        anew, lines = self._metrics.new()
        if anew:
            self.records, self.health = [], Health()
        for _, line in lines:
            record = parsed(line)
            if isinstance(record.get("step"), int):
                self.records.append(record)
                self.health.check(record)
        anew, lines = self._samples.new()
        if anew:
            self._sample_lines = {}
        for offset, line in lines:
            if found := _STEP.match(line):
                self._sample_lines.setdefault(int(found[1]), []).append((offset, len(line)))

    @property
    def sampled_steps(self) -> list[int]:
        """Steps that have samples."""
        return sorted(self._sample_lines)

    def samples(self, steps: Sequence[int]) -> list[dict[str, Any]]:
        found = []
        with contextlib.suppress(FileNotFoundError), open_file(self.run_dir, "samples.jsonl") as file:
            for offset, length in (place for step in steps for place in self._sample_lines[step]):
                found.append(parsed(os.pread(file.fileno(), length, offset)))
        return [sample for sample in found if isinstance(sample.get("step"), int)]

    def signature(self, name: str) -> Signature:
        """Another one whenever the file has changed; None if it is not there."""
        try:
            stat = (self.run_dir / name).lstat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    @property
    def recipe_text(self) -> str:
        return text(self.run_dir, "recipe.yaml")

    @property
    def recipe(self) -> dict[str, Any]:
        try:
            recipe = yaml.safe_load(self.recipe_text)
        except yaml.YAMLError:
            return {}
        return recipe if isinstance(recipe, dict) else {}

    @property
    def summary(self) -> dict[str, Any]:
        """Totals; {} until the run has ended."""
        return json_object(self.run_dir, "summary.json")

    @property
    def status(self) -> dict[str, Any]:
        """Where the run stood in its last second (`runtime/status.py`)."""
        return json_object(self.run_dir, "status.json")
