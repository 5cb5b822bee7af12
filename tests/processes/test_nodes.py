"""Stacks and orphans over real Ray, with two nodes on this machine."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asyncrl.processes import orphans, stacks
from asyncrl.processes.nodes import call_on

pytestmark = pytest.mark.slow


@ray.remote(num_cpus=0, max_concurrency=2)
class Actor:
    def start(self, folder: Path) -> dict[str, Any]:
        stacks.record(folder, "generator-0")
        self.child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        return orphans.here()

    def hold_the_gil(self) -> None:
        re.match("(a+)+$", "a" * 60 + "b")


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[str, str]]:
    """Ray ids of this node and of the other one."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        here = ray.get_runtime_context().get_node_id()
        assert other.node_id != here
        yield here, other.node_id
    finally:
        ray.shutdown()
        cluster.shutdown()


def run(coroutine: Any) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(coroutine, 90)

    return asyncio.run(bounded())


def actor_on(node_id: str) -> Any:
    return Actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()


def node_of_this_process() -> tuple[str, int]:
    return ray.get_runtime_context().get_node_id(), os.getpid()


def sleep() -> None:
    time.sleep(2.0)


def fail() -> None:
    raise KeyError("on purpose")


def test_a_call_runs_where_it_should(nodes) -> None:
    here, other = nodes
    assert run(call_on(here, node_of_this_process, deadline_s=60)) == (here, os.getpid())
    node, pid = run(call_on(other, node_of_this_process, deadline_s=60))
    assert node == other
    assert pid != os.getpid()
    for node in nodes:
        with pytest.raises(KeyError, match="on purpose"):
            run(call_on(node, fail, deadline_s=60))
        with pytest.raises(TimeoutError):
            run(call_on(node, sleep, deadline_s=0.5))


def test_a_node_that_is_gone(nodes, tmp_path: Path) -> None:
    nowhere = "1" * len(nodes[0])
    with pytest.raises((RayError, TimeoutError)):
        run(call_on(nowhere, node_of_this_process, deadline_s=5))
    assert run(stacks.collect(tmp_path, "generator-0", os.getpid(), nowhere, 5.0)) is None
    assert run(orphans.end_on_node(nowhere, [orphans.identify(os.getpid())], 5.0)) == []


@pytest.mark.parametrize("where", [0, 1])
def test_an_actor_that_holds_the_gil_says_where_and_is_ended_with_its_children(
    nodes, tmp_path: Path, where: int
) -> None:
    actor = actor_on(nodes[where])
    at = ray.get(actor.start.remote(tmp_path), timeout=60)
    assert at["node"] == nodes[where]
    itself, child = at["processes"]
    assert itself.pid == at["pid"]
    assert child.name == "sleep"
    stuck = actor.hold_the_gil.remote()

    async def look() -> Path:
        # It may not have begun: until it has, the stack is that of an idle actor.
        while True:
            path = await stacks.collect(tmp_path, "generator-0", at["pid"], at["node"], 30.0)
            if " in hold_the_gil" in path.read_text():
                return path

    assert run(look()) == tmp_path / f"generator-0-{at['pid']}.txt"
    assert orphans._living(itself)
    ended = run(orphans.end_on_node(at["node"], at["processes"], 30.0))
    assert ended in ([itself, child], [itself])  # the child may have gone with it
    assert orphans._living(itself) is None
    assert orphans._living(child) is None
    with pytest.raises(RayError):
        ray.get(stuck, timeout=60)
