"""Ray that does not come up, or is not waited for: a sentence, and nothing of it is left but logs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from test_run import below

from asyncrl.cluster import ray_cluster
from asyncrl.errors import RunFailed, UserError
from asyncrl.recipe.load import load

TINY = Path(__file__).resolve().parents[2] / "recipes" / "tiny.yaml"


@pytest.fixture
def place() -> Iterator[Path]:
    """A temporary folder whose name leaves room for Ray's sockets, as pytest's do not."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("raised", "shown", "said"),
    [
        (Exception("The node timed out.\nOverloaded."), RunFailed, "Ray did not start: The node timed out. Overloaded"),
        (ConnectionError("no GCS"), UserError, "cannot start or reach Ray in PLACE: no GCS"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
    ids=["bare", "connection", "interrupt"],
)
def test_what_has_started_of_it_is_ended(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    raised: BaseException,
    shown: type[BaseException],
    said: str,
) -> None:
    started = []

    def init(_temp_dir: str, **_: Any) -> None:
        Path(_temp_dir, "session_latest/logs").mkdir(parents=True)
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        raise raised

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(shown) as failed:
        ray_cluster.start(load(TINY))
    assert said.replace("PLACE", str(place)) in str(failed.value)
    assert started[0].wait(10) == -signal.SIGKILL
    kept = list(place.glob("asyncrl.*/ray/session_latest/logs"))
    assert bool(kept) == (shown is RunFailed)
    assert all(f"Ray's logs are in {logs}" in caplog.text for logs in kept)


@pytest.mark.slow
def test_sigterm_while_ray_starts(place: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asyncrl", "train", TINY, "rollout.engine=simulated", "rollout.engine_args={}"]
    more = {"cwd": tmp_path, "env": {**os.environ, "TMPDIR": str(place)}, "text": True}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*command, "track.wandb=off"], **more, **pipes)
    try:
        until = time.monotonic() + 120
        while not below(process.pid, "raylet/raylet ") and time.monotonic() < until:
            time.sleep(0.05)
        family = below(process.pid)
        process.terminate()
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, out + error
    assert error.splitlines()[-1] == "asyncrl: ended by SIGTERM"
    assert "Traceback" not in error
    assert family
    assert psutil.wait_procs(family, timeout=10)[1] == []
    # torch's cache is for good.
    assert {path.name.partition("_")[0] for path in place.iterdir()} <= {"torchinductor"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "starts"),
    [
        ("Failed to start GCS. Last 0 lines of error files:", 2),
        ("The current node timed out during startup.", 2),
        ("No space left on device", 1),
    ],
)
def test_a_port_that_was_taken_meanwhile_is_no_end(
    said: str, starts: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Any] = []

    def init(options: Any, address: Any) -> None:
        calls.append(address)
        if len(calls) == 1:
            kind = RunFailed if "timed out" in said else UserError
            raise kind(f"ray_address: cannot start or reach Ray in /tmp: {said}")

    monkeypatch.setattr(ray_cluster, "_init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe = SimpleNamespace(ray_address=None)
    if starts == 1:
        with pytest.raises(UserError, match="No space left"):
            ray_cluster.start(recipe)
    else:
        ray_cluster.start(recipe)
        assert "it is started once more" in caplog.text
    assert len(calls) == starts


def test_a_ray_of_the_users_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: True)
    with pytest.raises(UserError, match=r"call ray.shutdown\(\) first"):
        ray_cluster.start(SimpleNamespace(ray_address=None))
