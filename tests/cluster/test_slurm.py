"""The sbatch script, run by bash with stand-ins for Slurm's commands: Ray, the two nodes and the run are real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from asyncrl.cli import main

ROOT = Path(__file__).resolve().parents[2]
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
if [ "$1" = hostname ]; then echo 127.0.0.1; exit; fi
if [ "$1 $2" = "ray start" ]; then exec "$@" --num-cpus=1; fi
exec "$@"
"""
# Says them one after the other: who reads the first alone and goes leaves it a broken pipe.
SCONTROL = """#!/bin/bash
set -e
for node in node-a node-b; do echo "$node"; sleep 0.2; done
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.chdir(ROOT)
    keys = ["rollout.engine=simulated", "track.wandb=off", "max_steps=2000", "checkpoint.every_steps=0"]
    where = f"run_dir={tmp_path / 'run'}"
    assert main(["submit", "recipes/tiny.yaml", where, *keys, "--slurm", "--nodes", "2"]) == 0
    path = tmp_path / "tiny.sbatch"
    path.write_text(capsys.readouterr().out)
    return path


def environment(tmp_path: Path) -> dict[str, str]:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2"}
    keep = {key: os.environ[key] for key in ("HOME", "PATH", "LANG") if key in os.environ}
    return {**keep, **slurm, "PATH": f"{tools}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def test_a_run_that_ends_at_once_says_how(script: Path, tmp_path: Path) -> None:
    """Before anyone has looked whether it lives: no process is found here by `kill -0`."""
    tools = environment(tmp_path)
    for name in ("srun", "python"):
        says = 'case "$*" in *" train "*) exit 7;; esac; echo 127.0.0.1'
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{says}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    # The script puts the folder of this Python first.
    text = "\n".join(line for line in script.read_text().splitlines() if not line.startswith("export PATH="))
    done = subprocess.run(
        ["bash", "-c", text], env={**tools, "BASH_FUNC_kill%%": "() { return 1; }"}, capture_output=True, timeout=60
    )
    assert done.returncode == 7, done.stderr


@pytest.mark.slow
def test_the_script_starts_two_nodes_runs_and_ends_what_it_started(script: Path, tmp_path: Path) -> None:
    """Slurm's SIGTERM before the time is up comes in the middle: the run saves and ends."""
    log = (tmp_path / "log").open("w+")
    job = subprocess.Popen(["bash", script], env=environment(tmp_path), stdout=log, stderr=log, start_new_session=True)
    try:
        metrics = tmp_path / "run/metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()):
            assert job.poll() is None, (tmp_path / "log").read_text()
            with_deadline(job)
        folders = ray_folders(job.pid)
        assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700]
        job.send_signal(signal.SIGTERM)
        assert job.wait(120) == 0, (tmp_path / "log").read_text()
    finally:
        for process in members(job.pid):
            process.kill()
    assert not members(job.pid)
    assert not any(folder.exists() for folder in folders)
    last = json.loads(metrics.read_text().splitlines()[-1])
    assert 0 <= last["step"] < 1999
    assert (tmp_path / f"run/checkpoints/step_{last['step'] + 1:06d}/COMPLETE").exists()
    assert "stopped by SIGTERM" in (tmp_path / "log").read_text()
    assert job.pid not in psutil.pids()


def ray_folders(session: int) -> set[Path]:
    """Where the nodes have their folders."""
    words = {word for process in members(session) for word in process.cmdline() if word.startswith("--temp-dir=")}
    return {Path(word.removeprefix("--temp-dir=")).parent for word in words}


def with_deadline(job: subprocess.Popen[bytes]) -> None:
    """Until the next look at the file; the test's own deadline ends the whole."""
    try:
        job.wait(0.2)
    except subprocess.TimeoutExpired:
        return


def members(session: int) -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if p.is_running() and _session(p) == session and p.status() != "zombie"]


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except (ProcessLookupError, PermissionError):
        return None


def test_the_script_asks_for_what_the_recipe_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: Path
) -> None:
    text = script.read_text()
    assert "#SBATCH --nodes=2\n" in text
    assert "gpus-per-node" not in text
    assert subprocess.run(["bash", "-n", script], timeout=30).returncode == 0
    assert text.count('--temp-dir="$tmp/ray"') == text.count("ray start --") == 2
    assert 'mkdir -m 700 "$tmp"' in text
    gpus = ["rollout.gpus_per_replica=1", "rollout.replicas=8", "trainer.ranks=8", "trainer.gpus_per_rank=1"]
    assert main(["submit", "recipes/tiny.yaml", "run_dir=/shared/x", *gpus, "--slurm"]) == 0
    text = capsys.readouterr().out
    assert "#SBATCH --nodes=2\n" in text
    assert "#SBATCH --gpus-per-node=8\n" in text
