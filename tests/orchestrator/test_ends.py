"""Every end is a defined one: an exit code, one sentence, and a directory that `asyncrl resume` goes on from."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from command import ROOT
from ray.exceptions import ObjectStoreFullError
from test_run import SIMULATED, asyncrl, below, check, kill_group, records, summary, wait_for

from asyncrl.cli import main
from asyncrl.cluster import ray_cluster
from asyncrl.control.ledger import Ledger
from asyncrl.data.tasks import Task
from asyncrl.envs.environment import ToolUse
from asyncrl.errors import BudgetSpent
from asyncrl.orchestrator import run
from asyncrl.orchestrator.budget import Budget
from asyncrl.recipe.load import load
from asyncrl.rollout.episode import Finished
from asyncrl.rollout.generator import Generator
from asyncrl.rollout.trajectory import Group, Trajectory
from asyncrl.storage import atomic

GRACE_S = 10.0


def sentence(output: str) -> str:
    """What the command line said last, as the one sentence of a failed run."""
    assert "Traceback" not in output, output
    said = [line for line in output.splitlines() if line.startswith("asyncrl: ")]
    assert len(said) == 1, output
    return said[0]


def saved(run_dir: Path) -> int:
    """Steps done at the newest complete checkpoint."""
    return int(atomic.complete(run_dir / "checkpoints")[-1].name.removeprefix("step_"))


def finished(run_dir: Path, steps: int, *overrides: str) -> None:
    """Resumed, the run gets to its end, and its journal says the same."""
    code, output = asyncrl("resume", str(run_dir), *overrides)
    assert code == 0, output
    assert check(run_dir, steps)["trained"] == 4 * steps
    assert main(["replay", str(run_dir)]) == 0


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(path: Path) -> None:
    """A file that leaves nothing free beside it."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"\1" * 4096):
                pass
        except OSError:
            return


@pytest.mark.slow
def test_disk_that_is_full_in_the_middle(small_disk: Path) -> None:
    run_dir = small_disk / "run"
    overrides = ["journal.keep=all", "checkpoint.every_steps=3", f"run_dir={run_dir}"]
    process = asyncrl("train", "recipes/tiny.yaml", *SIMULATED, *overrides, background=True)
    try:
        wait_for(lambda: len(records(run_dir)) >= 1, process, "step 1")
        fill(small_disk / "filler")
        output, _ = process.communicate(timeout=120)
    finally:
        kill_group(process)
    assert process.returncode == 1, output
    said = sentence(output)
    assert f"{run_dir}/" in said
    assert "No space left on device" in said
    assert "resume" in said
    assert len(records(run_dir)) < 6
    (small_disk / "filler").unlink()
    finished(run_dir, steps=6)


# -- a report that cannot be made


@pytest.mark.parametrize("error", [UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "no"), OSError(28, "disk full")])
def test_a_report_that_cannot_be_written_hides_no_error_and_is_told(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(run, "write_report", fail)
    said = run._report(tmp_path)
    assert said.startswith("not written (")
    assert f"`asyncrl report {tmp_path}` writes it" in said
    assert "the report was not written" in caplog.text


# -- a place that cannot be written


@pytest.mark.parametrize("parent", ["a_file", "/proc"])
def test_run_directory_that_cannot_be_made(
    parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Root may write everywhere but below a file, and where only the kernel makes files."""
    for name in ("start", "stop"):
        monkeypatch.setattr(ray_cluster, name, lambda *_, **__: None)
    monkeypatch.setattr(run, "reserve", lambda *_, **__: None)
    monkeypatch.chdir(ROOT)
    (tmp_path / "a_file").touch()
    run_dir = tmp_path / parent / "run"
    assert main(["train", "recipes/tiny.yaml", *SIMULATED, f"run_dir={run_dir}"]) == 2
    said = sentence(capfd.readouterr().err)
    assert f"{run_dir} cannot be made" in said
    assert "choose another run_dir" in said


# -- time


@pytest.mark.slow
def test_max_hours_end_a_run_with_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    run_dir, seconds = tmp_path / "run", 30
    overrides = [f"run_dir={run_dir}", f"max_hours={seconds / 3600}", "max_steps=10000"]
    code, output = asyncrl("train", "recipes/tiny.yaml", *SIMULATED, *overrides)
    assert code == 0, output
    steps = len(records(run_dir))
    assert f"stopped by max_hours {seconds / 3600:g} after step {steps}" in " ".join(output.split())
    assert steps == saved(run_dir)
    finished(run_dir, steps + 2, f"max_steps={steps + 2}", "max_hours=1")


# -- numbers that are not

NAN_LOSS = """
import torch
from asyncrl.algorithms.losses import LossOutput

def loss(logprobs, behaviour_logprobs, prox_logprobs, advantages, mask, **_):
    return LossOutput(logprobs * float("nan"), torch.zeros_like(mask))
"""


@pytest.mark.slow
def test_gradients_that_are_never_finite_stop_the_run_cleanly(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(NAN_LOSS)
    run_dir = tmp_path / "run"
    overrides = [
        f"algorithm.loss={tmp_path / 'bad.py'}:loss",
        "budgets.max_consecutive_skipped_steps=2",
        f"run_dir={run_dir}",
    ]
    code, output = asyncrl("train", "recipes/tiny.yaml", *SIMULATED, *overrides)
    assert code == 1, output
    said = sentence(output)
    assert "budgets.max_consecutive_skipped_steps" in said
    found = records(run_dir)
    # The step after the last one of the budget may have begun.
    assert 2 <= len(found) <= 3
    assert all(record["trainer/skipped_steps"] == 1 for record in found)
    assert f"step {len(found)} is saved" in said
    assert saved(run_dir) == len(found)
    assert main(["replay", str(run_dir)]) == 0


# -- signals

# A step that takes half a second and says when it begins; a reward that is not always a number.
SLOW_STEP = """
import time
from pathlib import Path
from asyncrl.algorithms.losses import reinforce

def loss(*tensors, **coefficients):
    mark = Path(__file__).with_name("under_way")
    mark.touch()
    time.sleep(0.5)
    mark.unlink()
    return reinforce(*tensors, **coefficients)

def reward(completion, **row):
    return float("nan") if len(completion) % 4 == 0 else float("-inf") if len(completion) % 4 == 1 else len(completion)
"""


def interrupted(process: Any, run_dir: Path, steps: int) -> None:
    """While a step is running: it is finished and saved, and the words are true."""
    mark = run_dir.parent / "under_way"
    try:
        wait_for(lambda: len(records(run_dir)) >= steps and mark.exists(), process, f"a step after {steps}")
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        kill_group(process)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    done = len(records(run_dir))
    assert done > steps
    assert f"stopped by SIGINT after step {done}; `asyncrl resume {run_dir}` goes on" in output
    assert saved(run_dir) == done
    found = summary(run_dir)
    Ledger(**found["ledger"]).check()
    assert found["ledger"]["trained"] == 4 * done
    assert found["ledger"]["leased"] == 0


def killed_by_the_second(process: Any, run_dir: Path, steps: int) -> None:
    """While a step is running: once is patient, twice is now; nobody stays behind."""
    mark = run_dir.parent / "under_way"
    try:
        wait_for(lambda: len(records(run_dir)) >= steps and mark.exists(), process, f"a step after {steps}")
        # Ray's agents only look now and then whether they are alone.
        agents = below(process.pid, "Agent")
        family = [child for child in below(process.pid) if child not in agents]
        assert below(process.pid, "ray::TrainerActor")
        process.terminate()
        began = time.monotonic()
        # Two that come together may be delivered as one.
        while process.poll() is None and time.monotonic() < began + GRACE_S:
            process.terminate()
            time.sleep(0.1)
        output, _ = process.communicate(timeout=GRACE_S)
        assert time.monotonic() < began + GRACE_S
        _, alive = psutil.wait_procs(family, timeout=2 * GRACE_S)
        assert alive == []
    finally:
        kill_group(process)
    assert process.returncode == 130, output
    assert "SIGTERM: the run stops after this step" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_signals_stop_a_run_that_goes_on_later(tmp_path: Path) -> None:
    """Ctrl-C in a terminal, which reaches all processes, then two SIGTERMs in the run that was resumed.

    A single SIGTERM is in test_run.py.
    """
    (tmp_path / "mine.py").write_text(SLOW_STEP)
    run_dir, mine = tmp_path / "run", tmp_path / "mine.py"
    overrides = [f"algorithm.loss={mine}:loss", f"reward={mine}:reward", "max_steps=6", "journal.keep=all"]
    arguments = [*SIMULATED, "rollout.engine_args={token_s: 0.02}", *overrides, f"run_dir={run_dir}"]
    process = asyncrl("train", "recipes/tiny.yaml", *arguments, background=True)
    interrupted(process, run_dir, steps=1)
    done = len(records(run_dir))
    process = asyncrl("resume", str(run_dir), background=True)
    killed_by_the_second(process, run_dir, steps=done)
    assert not (run_dir / "summary.json").exists()
    finished(run_dir, steps=6)
    last = records(run_dir)[-1]
    assert last["rewards/failed"] > 0
    assert last["trainer/skipped_steps"] == 0
    assert last["reward/mean"] > 0


# -- memory of Ray


class FullStore:
    """A buffer to whom nothing can be sent."""

    class put:
        @staticmethod
        def remote(*_: Any) -> Any:
            raise ObjectStoreFullError("Failed to put object: the store is full")


class Runner:
    """One token, rewarded."""

    async def run(self, task: Task, attempt: int) -> Finished:
        arrays = np.array([1, 2], np.int32), np.array([-1, 0], np.int32), np.zeros(2, np.float32)
        trajectory = Trajectory(*arrays, loss_mask=np.array([False, True]), reward=1.0, finish_reason="stop")
        return Finished(Group(task.number, attempt, task.row_index, (trajectory,)), ["text"], [], ToolUse())


def test_full_object_store_fails_the_group_and_counts() -> None:
    config = SimpleNamespace(name="generator-0", settings=SimpleNamespace(filter_equal_rewards=False))
    generator = Generator.__ray_metadata__.modified_class(config, FullStore())
    generator.runner = Runner()
    summaries = [asyncio.run(generator.run_group(Task(7, 0, "prompt", {}), attempt)) for attempt in range(3)]
    assert [(s.task, s.attempt, s.outcome) for s in summaries] == [(7, attempt, "failed") for attempt in range(3)]
    assert all("ObjectStoreFullError" in s.reason for s in summaries)
    recipe = load(ROOT / "recipes/tiny.yaml", ["budgets.max_consecutive_failed_groups=3", "groups_per_step=1"])
    budget = Budget(recipe)
    budget.group(summaries[0])
    budget.group(summaries[1])
    with pytest.raises(BudgetSpent, match=r"the last 3 groups failed .*ObjectStoreFullError"):
        budget.group(summaries[2])


# -- clocks

WALL_CLOCK = {
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime", "asctime", "strftime", "clock_gettime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
ALLOWED = {
    ("chat_template.py", "datetime.now"),  # the date that a chat template asks for
    ("cluster/jobs.py", "time.strftime"),  # the name of a job
    ("envs/dialects.py", "time.time"),  # OpenAI's answers have the time in them
    ("observe/backends/mlflow.py", "time.time"),  # MLflow wants it beside each value
    ("observe/backends/tensorboard.py", "time.time"),  # TensorBoard too
    ("terminal/live.py", "time.strftime"),  # in front of a line
    ("report/standing.py", "time.gmtime"),  # in front of what was logged
    ("report/standing.py", "time.strftime"),
    ("report/report.py", "time.gmtime"),  # when the run was started
    ("report/report.py", "time.strftime"),
    ("observe/trace.py", "time.time"),  # where a process's own clock stands, once
    ("orchestrator/status.py", "time.time"),  # when the file was written, for a reader on any machine
    ("orchestrator/run.py", "time.strftime"),  # the name of a run directory
    ("cli/sweeping.py", "time.strftime"),  # of a folder of runs
    ("cli/evaluating.py", "time.strftime"),  # of a folder of scores
    ("api/calls.py", "time.strftime"),
    ("orchestrator/evaluations.py", "time.time"),  # when a score was written, for its reader
    ("orchestrator/evaluate.py", "time.time"),
    ("orchestrator/lm_eval.py", "time.time"),
}


def wall_clocks(source: str) -> set[str]:
    """Uses of clocks that can be set: `time.time`, however the module is called, and names taken from it."""
    tree, found, names = ast.parse(source), set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(alias.asname or alias.name): alias.name for alias in node.names if alias.name in WALL_CLOCK}
        elif isinstance(node, ast.ImportFrom) and node.module in WALL_CLOCK:
            for alias in node.names:
                if alias.name in WALL_CLOCK[node.module]:
                    found.add(f"{node.module}.{alias.name}")
                elif alias.name in WALL_CLOCK:
                    names[alias.asname or alias.name] = alias.name
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", None)
        module = names.get(owner, owner if owner in ("datetime", "date") else None)
        if module and node.attr in WALL_CLOCK[module]:
            found.add(f"{module}.{node.attr}")
    return found


def test_no_clock_that_can_be_set_measures_anything() -> None:
    """Whatever the wall clock does, no deadline and no duration changes."""
    package = ROOT / "asyncrl"
    found = {
        (str(path.relative_to(package)), use) for path in package.rglob("*.py") for use in wall_clocks(path.read_text())
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import time\ntime.time()", {"time.time"}),
        ("import time as t\nt.time_ns()", {"time.time_ns"}),
        ("from time import time", {"time.time"}),
        ("from time import monotonic, perf_counter", set()),
        ("import time\ntime.monotonic()\ntime.sleep(1)", set()),
        ("import datetime\ndatetime.datetime.now()", {"datetime.now"}),
        ("from datetime import datetime as d\nd.utcnow()", {"datetime.utcnow"}),
        ("from datetime import timedelta\ntimedelta(seconds=1)", set()),
    ],
)
def test_such_clocks_are_found(source: str, found: set[str]) -> None:
    assert wall_clocks(source) == found
