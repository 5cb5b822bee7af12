"""The files of a run for someone who looks again and again: what has not changed is not read again.

    metrics.jsonl, samples.jsonl    grow: what is new at their end is read; a resume cuts them, then all is read anew
    recipe.yaml, summary.json, status.json    are small: read when asked for
Any of them may be missing or cut short: the run crashed, or still goes on.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from asyncrl.errors import UserError
from asyncrl.observe.evaluations import FILE as EVALUATIONS
from asyncrl.observe.health import Health
from asyncrl.observe.lm_eval import FILE as OF_LM_EVAL
from asyncrl.observe.metrics import read_lines
from asyncrl.recipe.unfolded import yaml_object
from asyncrl.report.curves import thin
from asyncrl.report.shapes import EVALUATION, LM_EVAL, SAMPLE, STATUS, SUMMARY, fitting, record
from asyncrl.storage.run_dir import json_object, lines, open_file, parsed, text

_STEP = re.compile(rb'\{"step": (\d{1,9})\b')
"""How a line of samples.jsonl begins. Thousands of them are long, and a few are shown."""

_MOST_COLUMNS = 300
_MOST_SAMPLE_BYTES = 2**26
"""Read at once."""
_MOST_KEPT = 5_000_000
"""Figures of all steps, or places of samples; a hundred thousand steps have so many."""
_MOST_BYTES = 2**20
"""Of a file that is one object; those of runs have a few KiB."""

Signature = tuple[int, int, int] | None


class Growing:
    """The whole lines of a file that grows."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self._place = run_dir, name
        self._file_id, self._end = 0, 0

    def new(self) -> tuple[bool, Iterator[tuple[int, bytes]]]:
        """Whether it is another file than at the last call, or was cut; and the lines since, with their offsets, to be
        read before the next call. UserError for a line that is longer than those of runs."""
        try:
            file = open_file(*self._place)
        except FileNotFoundError:
            anew, self._file_id, self._end = self._end > 0, 0, 0
            return anew, iter(())
        stat = os.fstat(file.fileno())
        anew = stat.st_ino != self._file_id or stat.st_size < self._end
        if anew:
            self._file_id, self._end = stat.st_ino, 0
        return anew, self._lines(file)

    def _lines(self, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        with file:
            file.seek(self._end)
            for line in lines(file, *self._place):
                if line.endswith(b"\n"):
                    yield self._end, line
                    self._end += len(line)


class RunFiles:
    """Call `refresh`, then read the rest."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.records: list[dict[str, Any]] = []
        """Of the steps done."""
        self.health = Health()
        """Has checked all records."""
        self._metrics, self._samples = Growing(run_dir, "metrics.jsonl"), Growing(run_dir, "samples.jsonl")
        self._num_figures = self._num_samples = 0
        self._thinned: list[dict[str, Any]] | None = None
        self._sample_lines: dict[int, list[tuple[int, int]]] = {}
        """Of each step the offsets and lengths of its samples."""

    def refresh(self) -> None:
        anew, new = self._metrics.new()
        if anew:
            self.records, self.health, self._num_figures, self._thinned = [], Health(), 0, None
        for _, line in new:
            if found := record(parsed(line)):
                self._thinned = None
                self.records.append(found)
                self.health.check(found)
                self._num_figures += len(found)
                self._bound(self._num_figures, "metrics.jsonl")
        anew, new = self._samples.new()
        if anew:
            self._sample_lines, self._num_samples = {}, 0
        for offset, line in new:
            if found := _STEP.match(line):
                self._sample_lines.setdefault(int(found[1]), []).append((offset, len(line)))
                self._num_samples += 1
                self._bound(self._num_samples, "samples.jsonl")

    @property
    def thinned(self) -> list[dict[str, Any]]:
        """The records that charts draw: several steps as one, where there are too many."""
        if self._thinned is None:
            self._thinned = thin(self.records, _MOST_COLUMNS)
        return self._thinned

    def _bound(self, count: int, name: str) -> None:
        if count > _MOST_KEPT:
            raise UserError(f"{self.run_dir / name} holds more than memory has room for; look at a part of the file")

    @property
    def sampled_steps(self) -> list[int]:
        """Steps that have samples."""
        return sorted(self._sample_lines)

    def samples(self, steps: Sequence[int]) -> list[dict[str, Any]]:
        """Of each step the first, if there are too many or too large ones."""
        found = []
        with contextlib.suppress(FileNotFoundError), open_file(self.run_dir, "samples.jsonl") as file:
            for step in steps:
                left = _MOST_SAMPLE_BYTES // len(steps)
                for offset, length in self._sample_lines[step]:
                    left -= length
                    if left >= 0:
                        found.append(parsed(os.pread(file.fileno(), length, offset)))
        return [sample for sample in (fitting(line, SAMPLE) for line in found) if "step" in sample]

    def signature(self, name: str) -> Signature:
        """Another one whenever the file has changed; None if it is not there."""
        try:
            stat = (self.run_dir / name).lstat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    @property
    def recipe_text(self) -> str:
        return text(self.run_dir, "recipe.yaml", _MOST_BYTES)

    @property
    def recipe(self) -> dict[str, Any]:
        return yaml_object(self.recipe_text, str(self.run_dir / "recipe.yaml"))

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Of held-out tasks, those that are whole."""
        return self._whole(EVALUATIONS, EVALUATION)

    @property
    def lm_eval(self) -> list[dict[str, Any]]:
        """Figures of lm_eval, those that are whole."""
        return self._whole(OF_LM_EVAL, LM_EVAL)

    def _whole(self, name: str, shape: Mapping[str, Any]) -> list[dict[str, Any]]:
        found = (fitting(line, shape) for line in read_lines(self.run_dir / name))
        return [line for line in found if len(line) == len(shape)]

    @property
    def summary(self) -> dict[str, Any]:
        """Totals; {} until the run has ended."""
        return fitting(json_object(self.run_dir, "summary.json", _MOST_BYTES), SUMMARY)

    @property
    def status(self) -> dict[str, Any]:
        """Where the run stood in its last second (`orchestrator/status.py`)."""
        return fitting(json_object(self.run_dir, "status.json", _MOST_BYTES), STATUS)
