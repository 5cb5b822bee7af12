"""A machine that is lost in the middle of a run: the run goes on with those that are left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster
from test_run import SIMULATED, asyncrl, check, kill_group, records, wait_for

from asyncrl import cli

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
    workers = psutil.Process(raylet.process.pid).children(recursive=True)
    return [worker for worker in workers if f"ray::{name}" in " ".join(worker.cmdline())]


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
    assert cli.main(["replay", str(run_dir)]) == 0
