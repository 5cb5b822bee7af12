"""scripts/test_gpu, without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> tuple[int, list[str]]:
    command = [sys.executable, ROOT / "scripts/test_gpu", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    return ended.returncode, ended.stdout.splitlines()


@pytest.mark.slow
def test_it_says_what_passed_and_what_was_skipped() -> None:
    code, lines = run("--device", "cpu", "attention", "ipc")
    assert code == 0, lines
    said = {line.partition("::")[2] for line in lines[:-1]}
    assert "test_a_tree_equals_its_sequences: 5 passed" in said
    assert any(line.endswith(": 1 skipped  (CUDA IPC is between processes on a GPU)") for line in said)
    last = json.loads(lines[-1])
    assert (last["passed"], last["skipped"], last["bad"]) == (9, 11, [])


@pytest.mark.slow
def test_nothing_tried_is_no_success() -> None:
    code, lines = run("ipc")
    assert code == 1 or json.loads(lines[-1])["passed"]


@pytest.mark.slow
def test_the_benchmark_runs_without_a_gpu_too() -> None:
    command = [sys.executable, ROOT / "scripts/bench_gpu", "--device", "cpu", "trainer"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["bench"] == "gpu_trainer"
    assert found["ours"] > 0 < found["theirs"]
