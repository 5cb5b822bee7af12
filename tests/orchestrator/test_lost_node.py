"""A machine that is lost in the middle of a run: the run goes on with those that are left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import ROOT
from ray.cluster_utils import Cluster
from test_run import SIMULATED, asyncrl, below, check, kill_group, records, wait_for

from asyncrl.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()


def actors_on(node: Any, name: str) -> list[psutil.Process]:
    """Workers below the node's raylet that run an actor of this class; Ray puts its name in their title."""
    [raylet] = node.all_processes["raylet"]
    return below(raylet.process.pid, f"ray::{name}")


def test_the_run_goes_on_without_the_lost_node(cluster: Cluster, tmp_path: Path) -> None:
    other = cluster.add_node(num_cpus=1)
    run_dir = tmp_path / "run"
    overrides = ["rollout.replicas=2", f"ray_address={cluster.address}", "journal.keep=all", f"run_dir={run_dir}"]
    process = asyncrl("train", "recipes/tiny.yaml", *SIMULATED, *overrides, background=True)
    try:
        wait_for(lambda: len(records(run_dir)) >= 2, process, "step 2")
        assert actors_on(cluster.head_node, "Buffer"), "the buffer belongs on the driver's node"
        lost = actors_on(other, "Generator")
        assert len(lost) == 1, "the generators belong on both nodes"
        cluster.remove_node(other, allow_graceful=False)
        output, _ = process.communicate(timeout=100)
    finally:
        kill_group(process)
    assert process.returncode == 0, output
    assert "is lost" in output
    assert "Traceback" not in output
    assert check(run_dir, steps=6)["trained"] == 24
    psutil.wait_procs(lost, timeout=10)
    assert not any(worker.is_running() for worker in lost)
    assert main(["replay", str(run_dir)]) == 0


CELL = """
import asyncio, sys
from asyncrl.cli import main

async def cell():
    return main(["resume", sys.argv[1]])

sys.exit(asyncio.run(cell()))
"""


def test_without_any_node_the_run_ends_at_once_and_goes_on_when_asked(tmp_path: Path) -> None:
    """The only raylet is killed; a change that no actor can start with is not kept; the plain resume after it is called
    inside of a running event loop."""
    run_dir = tmp_path / "run"
    process = asyncrl("train", "recipes/tiny.yaml", *SIMULATED, f"run_dir={run_dir}", background=True)
    try:
        wait_for(lambda: len(records(run_dir)) >= 1, process, "step 1")
        below(process.pid, "raylet/raylet ")[0].kill()
        output, _ = process.communicate(timeout=60)
    finally:
        kill_group(process)
    assert process.returncode == 1, output
    assert "Ray on this machine has died (its raylet is gone), and with it all actors of the run" in output
    assert f"`asyncrl resume {run_dir}` goes on" in output
    assert "Traceback" not in output
    before = (run_dir / "recipe.yaml").read_text()
    code, output = asyncrl("resume", str(run_dir), "rollout.engine_args={token_s: soon}")
    assert code == 1, output
    assert "ValueError: could not convert string to float: 'soon'" in output
    assert (run_dir / "recipe.yaml").read_text() == before
    resumed = subprocess.run(
        [sys.executable, "-c", CELL, str(run_dir)], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert check(run_dir, steps=6)["trained"] == 24
