"""Whoever dies, at whichever of the driver's awaits, and whatever is slow meanwhile: the run ends, and every batch is
in its weights once. The seeds and plans are fixed: what fails once fails again."""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world import DriverDied, Plan, World, copy_of

from asyncrl.orchestrator.driver import Driver
from asyncrl.recipe.schema import Recipe


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Each of thousands of deaths is a warning."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    """Nothing here is about disks."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def recipe_of(**keys: Any) -> Recipe:
    always = {"model": "x", "data": {"path": "x"}, "reward": "x", "group_size": 1, "groups_per_step": 2}
    return Recipe.model_validate(
        {
            **always,
            "max_steps": 5,
            "max_staleness": 1,
            "rollout": {"replicas": 2, "engine": "simulated"},
            "checkpoint": {"every_steps": 2, "keep_last": 1},
            "journal": {"keep": "since_checkpoint"},  # a small one is kept whole otherwise, and hides what is released
            "budgets": {"max_consecutive_restarts": 50},
            **keys,
        }
    )


def run(recipe: Recipe, plan: Plan, folder: Path) -> int:
    """A whole run; returns the iterations of its event loop."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World(recipe, folder, plan, monkeypatch)
        try:
            driver = world.live()
        except DriverDied:
            world = World(recipe, copy_of(folder), replace(plan, deaths={}), monkeypatch)
            driver = world.live()
    check(world, driver)
    return world.iteration


def check(world: World, driver: Driver) -> None:
    recipe, run_dir, ledger = world.recipe, world.run_dir, driver.controller.ledger
    ledger.check()
    assert (ledger.trained, ledger.running, ledger.ready, ledger.leased) == (
        recipe.max_steps * recipe.groups_per_step, 0, 0, 0
    )  # fmt: skip
    newest = recipe.max_steps
    for folder in sorted((run_dir / "checkpoints").glob("step_*")):
        assert (folder / "COMPLETE").exists()
        for rank in range(recipe.trainer.ranks):
            weights = json.loads((folder / "trainer" / f"rank_{rank}.json").read_text())
            assert [step for step, _ in weights] == list(range(int(folder.name[-6:]))), folder.name
    tasks = Counter(task for _, groups in weights for task, _ in groups)
    assert len(weights) == newest
    assert set(tasks.values()) == {1}
    assert len(tasks) == ledger.trained
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(newest))
    lines = (
        [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()] if recipe.eval else []
    )
    assert len({line["version"] for line in lines}) == len(lines), "a version was evaluated twice"
    assert all(0 <= line["other_versions_share"] < 1 for line in lines)
    if recipe.eval and driver.controller.live == newest and world.now < recipe.deadlines.start_s:
        assert newest in {line["version"] for line in lines}
    if driver.controller.live == newest:  # else there was no generator left when the last step was done
        assert all(generator.version == newest for generator in driver.fleet.serving.values() if generator.alive)


SMALL = {"max_steps": 3, "groups_per_step": 1, "rollout": {"replicas": 1, "engine": "simulated"}}
RANKS = {"trainer": {"ranks": 2}}
EVERY_STEP = {"checkpoint": {"every_steps": 1, "keep_last": 1}}
SNAPSHOTS = {"checkpoint": {"every_steps": 2, "keep_last": 1, "snapshot_every_steps": 1}}
SLOW = ("", "saved", "export", "commit", "train", "train_again", "start", "publish", "take_stats", "evaluate")


@pytest.mark.parametrize("slow", SLOW)
def test_a_rank_is_lost_at_every_await(slow: str, shared_memory: Path) -> None:
    """A checkpoint that completes while a recovery is in flight must not release what that starts from."""
    recipe = recipe_of(**SMALL, **RANKS, **EVERY_STEP)
    plan = Plan(last=slow)
    num_iterations = run(recipe, plan, shared_memory / "calm")
    for iteration in range(1 + SLOW.index(slow) % 2, num_iterations, 2):
        death = {iteration: "trainer-1 noticed" if iteration % 4 < 2 else "trainer-0"}
        run(recipe, replace(plan, deaths=death), shared_memory / str(iteration))


@pytest.mark.parametrize("slow", ["", "evaluate"])
def test_a_generator_is_lost_beside_an_evaluation(slow: str, shared_memory: Path) -> None:
    recipe = recipe_of(**SMALL, eval={"data": {"path": "y"}, "every_steps": 1})
    plan = Plan(last=slow)
    num_iterations = run(recipe, plan, shared_memory / "calm")
    for iteration in range(1, num_iterations, 3):
        run(recipe, replace(plan, deaths={iteration: "generator-0"}), shared_memory / str(iteration))


@pytest.mark.parametrize("slow", ["", "commit"])
def test_the_driver_dies_at_every_await(slow: str, shared_memory: Path) -> None:
    recipe = recipe_of(**SMALL, **EVERY_STEP)
    num_iterations = run(recipe, Plan(last=slow), shared_memory / "calm")
    for iteration in range(1, num_iterations, 2):
        run(recipe, Plan({iteration: "driver"}, last=slow), shared_memory / str(iteration))


VARIANTS = {
    "ranks": recipe_of(**RANKS),
    "snapshots": recipe_of(**SNAPSHOTS),
    "sync": recipe_of(policy="sync", max_staleness=0, **EVERY_STEP),
    "lag": recipe_of(experimental={"policy": "stale_k"}, max_staleness=2),
    "eval": recipe_of(eval={"data": {"path": "y"}, "every_steps": 2}, **EVERY_STEP),
    "limit": recipe_of(max_staleness=2, experimental={"groups_per_replica": 1}, **SNAPSHOTS),
    "drop": recipe_of(on_stale="drop", experimental={"backup_groups": 1}, **SNAPSHOTS),
}
VICTIMS = ("trainer-0", "trainer-0 noticed", "generator-0", "generator-1", "buffer", "holders", "driver")
PLANS = st.builds(
    Plan,
    deaths=st.dictionaries(st.integers(1, 450), st.sampled_from(VICTIMS), min_size=1, max_size=4),
    first=st.sampled_from(SLOW),
    last=st.sampled_from(SLOW),
    seed=st.one_of(st.none(), st.integers(0, 99)),
)


@settings(max_examples=250, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(variant=st.sampled_from(sorted(VARIANTS)), plan=PLANS)
def test_several_die_in_any_order(variant: str, plan: Plan) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        run(VARIANTS[variant], plan, Path(folder) / "run")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("version", [1, 2, 5])
def test_both_ends_of_a_push_that_never_ends_are_replaced(version: int, ranks: int, shared_memory: Path) -> None:
    recipe = recipe_of(trainer={"ranks": ranks})
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World(recipe, shared_memory / "run", Plan(), monkeypatch)
        world.stuck_pushes.add(version)
        driver = world.live()
    check(world, driver)
    assert not world.stuck_pushes
    assert sorted(set(world.killed)) == ["generator-0", *(f"trainer-{rank}" for rank in range(ranks))]
    assert driver.controller.live == recipe.max_steps
    assert world.now >= recipe.deadlines.publish_s
