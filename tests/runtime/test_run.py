"""Whole runs with real Ray actors: the run directory, faults, resume. The simulated engine where no model matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncrl.control.ledger import Ledger

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SIMULATED = [
    "rollout.engine=simulated",
    "rollout.engine_args={token_s: 0.1}",
    "algorithm.loss=reinforce",
    "rollout.max_prompt_tokens=128",
    "track.wandb=off",
    "track.tensorboard=false",
]


def asyncrl(*arguments: str, background: bool = False, cwd: Path = ROOT) -> Any:
    """The command line in a process group of its own."""
    command = [sys.executable, "-m", "asyncrl", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    if background:
        return process
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def records(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def wait_for(condition: Any, process: subprocess.Popen[str], what: str, deadline_s: float = 120) -> Any:
    """Poll until the condition holds; fails with the run's output if the run ends first."""
    deadline = time.monotonic() + deadline_s
    while not (result := condition()):
        if process.poll() is not None:
            pytest.fail(f"the run ended before {what}: {process.communicate()[0]}")
        assert time.monotonic() < deadline, f"{what} did not happen in {deadline_s} s"
        time.sleep(0.05)
    return result


def actor_pid(process: subprocess.Popen[str], name: str, index: int) -> int:
    """Pid of the Ray worker that runs the index-th actor of a class; Ray puts the class name in its title."""

    def find() -> list[psutil.Process]:
        children = psutil.Process(process.pid).children(recursive=True)
        return sorted((c for c in children if f"ray::{name}" in " ".join(c.cmdline())), key=lambda c: c.pid)

    return wait_for(lambda: find()[index : index + 1], process, f"{name} {index}")[0].pid


def check(run_dir: Path, steps: int, group_size: int = 4) -> dict[str, Any]:
    """What must hold of every finished run."""
    found = records(run_dir)
    assert [r["step"] for r in found] == list(range(steps))
    bound = summary(run_dir)["worst_case_staleness"]
    assert all(r["staleness/max"] <= bound for r in found)
    for role in ("trainer_time", "generator_time"):
        for record in found:
            assert sum(v for k, v in record.items() if k.startswith(role)) == pytest.approx(1, abs=0.02)
    ledger = summary(run_dir)["ledger"]
    Ledger(**ledger).check()
    assert (ledger["running"], ledger["ready"], ledger["leased"]) == (0, 0, 0)
    assert (run_dir / "report.html").stat().st_size > 1000
    assert all((p / "COMPLETE").exists() for p in (run_dir / "checkpoints").glob("step_*"))
    return ledger


def test_two_generators_one_killed(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # Slow: once the run says "training", both generators have work for seconds.
    slow = ["rollout.replicas=2", "max_steps=3", "rollout.engine_args={token_s: 0.5}"]
    process = asyncrl("train", "recipes/tiny.yaml", *SIMULATED, *slow, f"run_dir={run_dir}", background=True)
    try:
        for line in process.stdout:
            if line.strip().endswith("training"):
                break
        os.kill(actor_pid(process, "Generator", 1), signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
    finally:
        kill_group(process)
    assert process.returncode == 0, output
    assert "is lost" in output
    ledger = check(run_dir, steps=3)
    assert ledger["trained"] == 12
    assert ledger["requeued"] > 0


def kill_group(process: subprocess.Popen[str]) -> None:
    """kill -9 of the driver and everything below it."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)
    process.wait(30)


def test_killed_run_resumes_to_the_same_ledger(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = ["train", "recipes/tiny.yaml", *SIMULATED]
    code, output = asyncrl(*arguments, f"run_dir={whole}")
    assert code == 0, output
    process = asyncrl(*arguments, f"run_dir={killed}", background=True)
    try:
        wait_for(lambda: len(records(killed)) >= 3, process, "the third step")
    finally:
        kill_group(process)
    assert len(records(killed)) < 6
    assert not (killed / "summary.json").exists()
    code, output = asyncrl("resume", str(killed))
    assert code == 0, output
    assert check(killed, steps=6) == check(whole, steps=6)
    code, output = asyncrl("resume", str(killed))
    assert code == 2
    assert "has done all its 6 steps" in output


def test_reward_that_always_fails_stops_the_run(tmp_path: Path) -> None:
    """I7: a failed reward is not a zero reward, and a run that can learn nothing says so."""
    (tmp_path / "bad.py").write_text("def reward(completion, **row):\n    raise KeyError('gold')\n")
    run_dir = tmp_path / "run"
    code, output = asyncrl(
        "train", "recipes/tiny.yaml", *SIMULATED, f"reward={tmp_path / 'bad.py'}:reward", f"run_dir={run_dir}"
    )
    assert code == 1
    assert "the last 16 groups failed" in output
    assert "KeyError" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "source",
    [
        "def reward(prompts, completions, answer, **columns):\n    return [float(len(c)) for c in completions]\n",
        "def reward(data_source, solution_str, ground_truth, extra_info=None):\n    return float(len(solution_str))\n",
    ],
    ids=["trl", "verl"],
)
def test_foreign_rewards_work_unchanged(source: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(source)
    run_dir = tmp_path / "run"
    code, output = asyncrl(
        "train",
        str(ROOT / "recipes/tiny.yaml"),
        *SIMULATED,
        "reward=./mine.py:reward",
        "max_steps=2",
        f"run_dir={run_dir}",
        cwd=tmp_path,
    )
    assert code == 0, output
    check(run_dir, steps=2)
    assert records(run_dir)[-1]["reward/mean"] > 1


@pytest.mark.parametrize(
    "policy", [["policy=one_step"], ["over_age=drop", "max_staleness=2"], ["over_age=mask"], ["selection_window=3"]]
)
def test_policies(policy: list[str], tmp_path: Path) -> None:
    """Each keeps its bound over real actors; slow tokens make pushes meet running groups."""
    run_dir = tmp_path / "run"
    code, output = asyncrl("train", "recipes/tiny.yaml", *SIMULATED, *policy, f"run_dir={run_dir}")
    assert code == 0, output
    ledger = check(run_dir, steps=6)
    assert ledger["trained"] == 24
    if policy == ["policy=one_step"]:
        ages = [(r["staleness/mean"], r["staleness/max"]) for r in records(run_dir)]
        assert ages == [(0, 0)] + [(1, 1)] * 5


def test_two_real_replicas_with_every_push_verified(tmp_path: Path) -> None:
    """Real vLLM: own rank offset each, KV cache recomputed after a push, log-probs compared after every one."""
    run_dir = tmp_path / "run"
    overrides = ["rollout.replicas=2", "weights.verify=true", "rollout.kv_after_update=recompute", "max_steps=4"]
    code, output = asyncrl("train", "recipes/tiny.yaml", *overrides, f"run_dir={run_dir}")
    assert code == 0, output
    check(run_dir, steps=4)
    assert all(r["publish/bytes"] > 0 for r in records(run_dir)[2:])
    assert max(r["offpolicy/logprob_gap"] for r in records(run_dir) if r["staleness/max"] == 0) < 1e-3
    assert list((run_dir / "wandb").glob("offline-run-*"))
    assert list((run_dir / "tensorboard").iterdir())
