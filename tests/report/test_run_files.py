"""Files that grow are read from where the last look ended; one that a resume has cut is read anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asyncrl.observe.metrics import MetricsWriter
from asyncrl.report import run_files
from asyncrl.report.run_files import Growing, RunFiles


def new(growing: Growing) -> tuple[bool, list[tuple[int, bytes]]]:
    anew, lines = growing.new()
    return anew, [*lines]


def test_only_what_is_new_is_read_and_only_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    growing = Growing(tmp_path, "lines")
    assert new(growing) == (False, [])
    path.write_bytes(b"one\ntw")
    assert new(growing) == (True, [(0, b"one\n")])
    with path.open("ab") as file:
        file.write(b"o\nthree\nfo")
    assert new(growing) == (False, [(4, b"two\n"), (8, b"three\n")])
    assert new(growing) == (False, [])


def test_another_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\n")
    growing = Growing(tmp_path, "lines")
    new(growing)
    other = tmp_path / "other"
    other.write_bytes(b"uno\ndue\ntre\n")
    other.replace(path)  # longer than the one before
    assert new(growing) == (True, [(0, b"uno\n"), (4, b"due\n"), (8, b"tre\n")])
    path.write_bytes(b"ein\n")
    assert new(growing) == (True, [(0, b"ein\n")])
    path.unlink()
    assert new(growing) == (True, [])


def test_a_resume_that_cuts_the_files_is_followed(made_up: Any, tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for record in made_up.records(8):
        writer.write(record | {"offpolicy/ess": 0.1})
    samples = MetricsWriter(tmp_path / "samples.jsonl")
    for sample in made_up.samples()[:8]:
        samples.write(sample)
    files = RunFiles(tmp_path)
    files.refresh()
    assert [r["step"] for r in files.records] == files.sampled_steps == [*range(8)]
    assert files.health.said["ess"].num_steps == 8
    for lines in (writer, samples):
        lines.truncate_after(5)
    files.refresh()
    assert [r["step"] for r in files.records] == files.sampled_steps == [*range(5)]
    assert files.health.said["ess"].num_steps == 5
    assert [s["task"] for s in files.samples([4, 0])] == [s["task"] for s in (made_up.samples()[i] for i in (4, 0))]


def test_damaged_files_are_empty(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    assert (files.recipe, files.summary, files.status) == ({}, {}, {})
    for name in ("summary.json", "status.json"):
        (tmp_path / name).write_text('{"ledger": {"dr')
    (tmp_path / "recipe.yaml").write_text("a: [")
    (tmp_path / "metrics.jsonl").write_bytes(b'[1]\n\xff\xfe\n{"no": "step"}\n{"step": "x"}\n')
    (tmp_path / "samples.jsonl").write_bytes(b'{"step": 3, "tas\n')
    files.refresh()
    assert (files.recipe, files.summary, files.status, files.records) == ({}, {}, {}, [])
    assert files.samples(files.sampled_steps) == []


def test_no_more_samples_are_read_than_memory_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_files, "_MOST_SAMPLE_BYTES", 300)
    lines = [f'{{"step": {step}, "task": {task}, "tokens": ["{"a" * 50}"]}}' for step in (0, 1) for task in range(9)]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines) + "\n")
    files = RunFiles(tmp_path)
    files.refresh()
    assert [(s["step"], s["task"]) for s in files.samples([0, 1])] == [(0, 0), (1, 0)]


def test_samples_are_found_by_their_places(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "prompt": "é" * step, "task": n}) for step in range(5) for n in range(2)]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = RunFiles(tmp_path)
    files.refresh()
    assert [(s["step"], s["task"]) for s in files.samples([3, 1])] == [(3, 0), (3, 1), (1, 0), (1, 1)]
