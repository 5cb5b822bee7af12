"""What the fleet says of its generators: without Ray, on handles and a trainer that only answer."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncrl.control.messages import GeneratorJoined, GeneratorLost
from asyncrl.observe.trace import TraceFile
from asyncrl.orchestrator.fleet import Fleet
from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.processes.orphans import ProcessTable
from asyncrl.recipe.schema import Recipe
from asyncrl.weights.update import PublishReport
from asyncrl.weights.verify import Verification, WeightMismatch

STARTING = {"state": "starting"}


async def answer(value: Any) -> Any:
    return value


def handle(busy: float, paused: float, idle: float, tokens: int) -> SimpleNamespace:
    stats = {"busy": busy, "paused": paused, "idle": idle, "tokens": tokens}
    return SimpleNamespace(take_stats=SimpleNamespace(remote=lambda: answer((stats, []))))


class Trainer:
    """One rank that pushes whatever it is asked for; 7 if it is not told a version."""

    first = 0

    def sent(self, handle: Any, version: int) -> bool:
        return True

    async def ready(self) -> Trainer:
        return self

    async def call(self, method: str, *arguments: Any) -> list[Any]:
        version = arguments[0] if arguments else None
        if method == "stage":
            return [(7 if version is None else version, None)]
        return [PublishReport(version, 0.1, 0.2, 3)] if method == "publish" else [None]


@pytest.fixture
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Fleet:
    rollout = {"replicas": getattr(request, "param", 2)}
    keys = {"model": "x", "data": {"path": "x"}, "reward": "x", "max_steps": 9, "rollout": rollout}
    posted: list[Any] = []
    recipe = Recipe.model_validate(keys)
    made = Fleet(
        recipe,
        lambda name: pytest.fail(f"{name} is made"),
        Trainer(),
        ProcessTable(tmp_path / "processes.json"),
        WaitingFor(60.0),
        posted.append,
        lambda coroutine: coroutine.close(),
        TraceFile(tmp_path / "trace.json"),
        Verification(recipe),
    )
    made.posted = posted
    made.serving = {"generator-0": handle(6.0, 1.0, 3.0, 500), "generator-1": handle(0.0, 0.0, 0.0, 0)}
    made._starter.workers.update(dict.fromkeys(made.serving, 1))
    return made


def status(fleet: Fleet, **loads: int) -> list[dict[str, Any]]:
    said = fleet.status({name.replace("_", "-"): groups for name, groups in loads.items()})
    assert [s.pop("name") for s in said] == ["generator-0", "generator-1"]
    return said


def test_a_generator_has_the_version_of_the_last_push_its_load_and_its_speed(fleet: Fleet) -> None:
    async def run() -> None:
        assert status(fleet) == [STARTING, STARTING]  # they have loaded, but serve no one yet
        await fleet.first_push(fresh=True)
        assert status(fleet, generator_0=3) == [
            {"state": "serving", "version": 0, "groups": 3},
            {"state": "serving", "version": 0, "groups": 0},
        ]
        await fleet.publish(1)
        await fleet.take_stats()
        one, other = status(fleet, generator_0=2, generator_1=5)
        shares = {"busy": 0.6, "paused": 0.1, "idle": 0.3}
        assert one == {"state": "serving", "version": 1, "groups": 2, "tokens_per_s": 50.0, **shares}
        assert other == {"state": "serving", "version": 1, "groups": 5}  # no time has passed for it

    asyncio.run(run())


def test_a_resumed_run_begins_with_the_version_that_the_trainer_holds(fleet: Fleet) -> None:
    asyncio.run(fleet.first_push(fresh=False))
    assert [s["version"] for s in status(fleet)] == [7, 7]


def test_a_lost_generator_is_starting_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncrl.orchestrator.starter.ray.kill", lambda _: None)

    async def run() -> None:
        await fleet.first_push(fresh=True)
        await fleet.take_stats()
        fleet.lost("generator-0", fleet.serving["generator-0"], RuntimeError("gone"))

    asyncio.run(run())
    assert fleet.posted == [GeneratorLost("generator-0")]
    assert status(fleet, generator_1=1) == [STARTING, {"state": "serving", "version": 0, "groups": 1}]


@pytest.mark.parametrize("fleet", [{"min": 2, "max": 3}], indirect=True)
def test_those_that_the_run_does_not_wait_for_are_started_once_it_has_begun(fleet: Fleet) -> None:
    made: list[str] = []
    beside: list[Any] = []
    fleet._spawn = beside.append

    async def loaded(name: str) -> Any:
        made.append(name)
        return handle(0.0, 0.0, 0.0, 0)

    fleet._starter.load = loaded  # type: ignore[method-assign]

    async def run() -> None:
        await fleet.start(lambda _: None)
        assert made == ["generator-0", "generator-1"]
        await fleet.first_push(fresh=True)
        fleet._starter.without_room.add("generator-2")
        assert fleet.status({})[2] == {"name": "generator-2", "state": "waiting for room"}
        fleet._starter.without_room.clear()
        fleet._starter.workers["generator-2"] = 1
        for one in beside:
            await one
        assert set(fleet.serving) == {f"generator-{n}" for n in range(3)}

    asyncio.run(run())
    assert made == [f"generator-{n}" for n in range(3)]
    assert GeneratorJoined("generator-2") in fleet.posted


def test_a_step_does_not_wait_for_a_generator_that_says_nothing(fleet: Fleet) -> None:
    async def run() -> None:
        silent, asked = asyncio.get_running_loop().create_future(), []
        fleet.serving["generator-0"].take_stats.remote = lambda: asked.append(1) or silent
        began = time.monotonic()
        assert [s["idle"] for s in await fleet.take_stats()] == [0.0]
        await fleet.take_stats()
        assert time.monotonic() - began < 10
        silent.set_result(({"busy": 1.0, "paused": 1.0, "idle": 5.0, "tokens": 7}, []))
        assert sorted(s["idle"] for s in await fleet.take_stats()) == [0.0, 5.0]
        assert asked == [1]

    asyncio.run(run())


@pytest.mark.parametrize(("version", "found"), [(None, -2.0), (None, -5.0), (1, -2.0), (1, -5.0)])
def test_the_first_push_is_verified(fleet: Fleet, version: int | None, found: float) -> None:
    """A resumed run's before anyone serves; a fresh run's beside the run, for the engine may be busy."""
    beside: list[Any] = []
    fleet._spawn = beside.append
    pushed = 7 if version is None else version
    fleet._verification.trainer_loaded([-1.0])
    fleet._verification.expect(pushed, [-2.0])
    for name, one in fleet.serving.items():
        fleet._verification.engine_loaded(name, [-1.0])
        one.ping = SimpleNamespace(remote=lambda *_: answer(None))
        one.score_probe = SimpleNamespace(remote=lambda: answer((pushed, [found])))

    async def run() -> None:
        if version is None:
            await fleet.first_push(fresh=False)
        else:
            await fleet.publish(version)
            assert len(beside) == 2
            for one in beside:
                await one

    if found == -2.0:
        asyncio.run(run())
        assert not fleet._verification.pending
    else:
        with pytest.raises(WeightMismatch, match=f"version {pushed}"):
            asyncio.run(run())
        for one in beside:
            one.close()
