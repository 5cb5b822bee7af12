"""A generator that finds no room ends the run only where too few others serve."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncrl.errors import BudgetSpent, DeadlineExceeded
from asyncrl.orchestrator.starter import Starter
from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.processes.orphans import ProcessTable
from asyncrl.recipe.schema import Recipe
from asyncrl.weights.verify import Verification

STARTED = {"host": "h", "run": "", "node": "n", "processes": [], "num_workers": 2, "probe": None}


class Handle:
    """Placed when there is room; its model is loaded at once, or never."""

    def __init__(self, room: asyncio.Event, hangs: bool) -> None:
        self.placed = SimpleNamespace(remote=room.wait)
        self.start = SimpleNamespace(remote=self._start)
        self.hangs = hangs

    async def _start(self) -> dict[str, Any]:
        if self.hangs:
            await asyncio.Event().wait()
        return STARTED


class World:
    """`hang`: of so many actors the model is never loaded."""

    def __init__(self, folder: Path, replicas: Any, serving: int, hang: int = 0) -> None:
        keys = {"model": "x", "data": {"path": "x"}, "reward": "x", "max_steps": 9, "rollout": {"replicas": replicas}}
        deadlines = {"deadlines": {"start_s": 0.05}, "budgets": {"max_consecutive_restarts": 3}}
        recipe = Recipe.model_validate({**keys, **deadlines})
        self.room, self.made = asyncio.Event(), 0

        def create(name: str) -> Any:
            self.made += 1
            return Handle(self.room, self.made <= hang)

        processes = ProcessTable(folder / "processes.json")
        verification = Verification(recipe)
        self.starter = Starter(recipe, create, processes, WaitingFor(60.0), verification, lambda: serving)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncrl.orchestrator.starter.ray.kill", lambda _: None)


@pytest.mark.parametrize(("replicas", "serving"), [(4, 1), ({"min": 2, "max": 4}, 2)])
def test_the_run_goes_on_without_it_until_there_is_room(
    replicas: Any, serving: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        world = World(tmp_path, replicas, serving)
        loading = asyncio.ensure_future(world.starter.load("generator-3"))
        await asyncio.sleep(0.2)
        assert world.starter.without_room == {"generator-3"}
        world.room.set()
        await loading
        assert not world.starter.without_room
        assert (world.made, world.starter.workers) == (1, {"generator-3": 2})

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    [said] = caplog.messages
    assert said.startswith("generator-3 has found no room within 0.05 s (deadlines.start_s): the run goes on with ")
    assert f"with {serving} of 4 generators" in said


@pytest.mark.parametrize(("replicas", "serving"), [(4, 0), ({"min": 2, "max": 4}, 1)])
@pytest.mark.parametrize("room", [False, True])
def test_with_too_few_others_the_run_ends(replicas: Any, serving: int, room: bool, tmp_path: Path) -> None:
    async def run() -> None:
        world = World(tmp_path, replicas, serving, hang=1)
        if room:
            world.room.set()
        await world.starter.load("generator-3")

    what = "to load the model" if room else "to find room and start"
    with pytest.raises(DeadlineExceeded, match=f"generator-3: {what}"):
        asyncio.run(run())


@pytest.mark.parametrize("hang", [3, 4])
def test_one_that_never_loads_is_made_again_while_others_serve(hang: int, tmp_path: Path) -> None:
    async def run() -> int:
        world = World(tmp_path, 2, 1, hang)
        world.room.set()
        await world.starter.load("generator-1")
        return world.made

    if hang == 3:
        assert asyncio.run(run()) == 4
    else:
        with pytest.raises(BudgetSpent, match="generator-1 was lost 4 times"):
            asyncio.run(run())
