"""A run whose reward is on a node of its own, and whose reward actor is killed."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from test_lost_node import actors_on, cluster  # noqa: F401
from test_run import SIMULATED, asyncrl, below, check, kill_group, records, wait_for

from asyncrl.cli import main

pytestmark = pytest.mark.slow


def test_the_reward_runs_where_its_resource_is_and_a_kill_costs_nothing(cluster: object, tmp_path: Path) -> None:  # noqa: F811
    other = cluster.add_node(num_cpus=1, resources={"judge": 1})
    run_dir = tmp_path / "run"
    keys = ["rewards.placement.resources={judge: 1}", "rewards.workers=2", f"ray_address={cluster.address}"]
    keys += ["journal.keep=all", f"run_dir={run_dir}", "rollout.engine_args={token_s: 0.2}"]
    process = asyncrl("train", "recipes/tiny.yaml", *SIMULATED, *keys, background=True)
    try:
        wait_for(lambda: len(records(run_dir)) >= 1, process, "step 1")
        [actor] = actors_on(other, "RewardActor")
        judges = below(actor.pid, "asyncrl.rewards")
        assert judges, "its reward processes"
        assert not actors_on(cluster.head_node, "RewardActor")
        generators = [*actors_on(other, "Generator"), *actors_on(cluster.head_node, "Generator")]
        assert generators
        assert not any(below(generator.pid, "asyncrl.rewards") for generator in generators)
        actor.kill()
        output, _ = process.communicate(timeout=240)
    finally:
        kill_group(process)
    assert process.returncode == 0, output
    assert "reward-0 runs on" in output
    assert "and reserves 1 judge" in output
    assert "reward-0 is lost; it is started again" in output
    assert "Traceback" not in output
    assert check(run_dir, steps=6)["trained"] == 24
    assert records(run_dir)[-1]["rewards/failed"] == 0
    psutil.wait_procs([actor, *judges], timeout=60)
    assert not any(one.is_running() for one in (actor, *judges))
    assert main(["replay", str(run_dir)]) == 0
