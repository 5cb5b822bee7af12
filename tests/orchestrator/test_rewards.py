"""Rewards in Ray actors of their own, on real ones: where they are placed, and what becomes of those that are lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.actor import ActorHandle

from asyncrl.cluster import placement
from asyncrl.cluster.placement import Places
from asyncrl.errors import BudgetSpent, UserError
from asyncrl.orchestrator.actors import Actors
from asyncrl.orchestrator.notices import Notices
from asyncrl.orchestrator.rewards import RewardActors
from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.processes.orphans import ProcessTable, begin_run
from asyncrl.recipe.schema import Recipe
from asyncrl.rewards.score import RewardRequest, Score
from asyncrl.rollout.placed import PlacedRewards
from asyncrl.storage.sight import Sight

pytestmark = pytest.mark.slow

REWARD = """
import os, pathlib, time

HERE = pathlib.Path(__file__).parent

def reward(completion, **row):
    (HERE / f"asked-{os.getpid()}").touch()
    while completion == "wait" and not (HERE / "go").exists():
        time.sleep(0.02)
    return 0.5

def of_evaluation(completion, **row):
    return 0.25
"""


@pytest.fixture(scope="module")
def two_judges(local_ray: Callable[..., None]) -> None:
    local_ray(num_cpus=2, resources={"judge": 2}, runtime_env={"env_vars": begin_run()})


def recipe_of(folder: Path, **keys: Any) -> Recipe:
    (folder / "mine.py").write_text(REWARD)
    always = {"model": "x", "data": {"path": "x"}, "max_steps": 1, "rollout": {"engine": "simulated"}}
    keys = {"rewards": {"placement": {"resources": {"judge": 1}}}, **keys}
    return Recipe.model_validate({**always, "reward": f"{folder}/mine.py:reward", **keys})


@dataclass
class Scene:
    """Reward actors of a recipe, watched as the driver does."""

    folder: Path
    recipe: Recipe
    actors: Sequence[ActorHandle]
    client: PlacedRewards
    posted: asyncio.Queue[BaseException]

    @property
    def pid(self) -> int:
        """Of the actor as processes.json has it."""
        return int(self.processes[0]["pid"])

    @property
    def processes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.table()["reward-0"]["processes"]
        return found

    def table(self) -> dict[str, dict[str, Any]]:
        table: dict[str, dict[str, Any]] = json.loads((self.folder / "processes.json").read_text())
        return table

    def has_another(self, pid: int) -> bool:
        """A successor is in processes.json."""
        return "reward-0" in self.table() and self.pid != pid

    def asked(self) -> list[int]:
        """Reward processes that were asked, by pid."""
        return [int(path.name.removeprefix("asked-")) for path in self.folder.glob("asked-*")]

    async def score(self, completion: str) -> list[Score]:
        return await self.client.score(RewardRequest("prompt", [completion], [[1]], ["stop"], {}))

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        async with asyncio.timeout(120):
            while not condition():
                assert self.posted.empty(), self.posted.get_nowait()
                await asyncio.sleep(0.02)


def playing(recipe: Recipe, folder: Path, play: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def scene() -> None:
        actors = Actors(recipe, "x", Sight.begin(folder), folder, Places(recipe, None))
        posted: asyncio.Queue[BaseException] = asyncio.Queue()
        table, waiting = ProcessTable(folder / "processes.json"), WaitingFor(recipe.deadlines.warn_s)
        watched = RewardActors(recipe, actors.reward_actors, Notices(), table, waiting, posted.put_nowait)
        try:
            await watched.start()
            client = PlacedRewards(actors.reward_actors, "", 100.0)
            await asyncio.wait_for(play(Scene(folder, recipe, actors.reward_actors, client, posted)), 200)
            client.close()
        finally:
            await watched.close()
            for actor in actors.reward_actors:
                ray.kill(actor)

    asyncio.run(scene())


def test_what_an_actor_was_asked_as_it_was_killed_its_successor_answers(
    two_judges: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(scene: Scene) -> None:
        first = scene.processes
        assert any("reward" in " ".join(psutil.Process(p["pid"]).cmdline()) for p in first[1:]), "its reward processes"
        score = asyncio.create_task(scene.score("wait"))
        await scene.until(scene.asked, "the reward is asked")
        [asked] = scene.asked()
        os.kill(scene.pid, signal.SIGKILL)
        await scene.until(lambda: scene.has_another(first[0]["pid"]), "its successor is in processes.json")
        (tmp_path / "go").touch()
        assert [one.reward for one in await score] == [0.5]
        assert len(scene.asked()) == 2, "by a process of each"
        gone = [psutil.Process(p["pid"]) for p in first if psutil.pid_exists(p["pid"])]
        psutil.wait_procs(gone, timeout=60)
        assert not psutil.pid_exists(asked)

    playing(recipe_of(tmp_path), tmp_path, play)
    assert "reward-0 is lost; it is started again, and what it was asked is asked again" in caplog.text


def test_an_evaluation_has_its_own_reward_there(two_judges: None, tmp_path: Path) -> None:
    async def play(scene: Scene) -> None:
        assert [one.reward for one in await scene.score("a")] == [0.5]
        scene.client = PlacedRewards(scene.actors, "held", 100.0)
        assert [one.reward for one in await scene.score("a")] == [0.25]

    held_out = {"name": "held", "data": {"path": "y"}, "reward": f"{tmp_path}/mine.py:of_evaluation", "every_steps": 1}
    playing(recipe_of(tmp_path, eval=held_out), tmp_path, play)


def test_an_actor_that_gives_no_sign_of_life_is_ended(
    two_judges: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(scene: Scene) -> None:
        before = scene.pid
        os.kill(before, signal.SIGSTOP)
        score = asyncio.create_task(scene.score("a"))
        await scene.until(lambda: scene.has_another(before), "its successor is in processes.json")
        assert [one.reward for one in await score] == [0.5]

    playing(recipe_of(tmp_path, deadlines={"warn_s": 1.0}), tmp_path, play)
    assert "reward-0 gives no sign of life within 1 s (deadlines.warn_s), and is ended" in caplog.text


def test_one_that_is_lost_again_and_again_ends_the_run(two_judges: None, tmp_path: Path) -> None:
    async def play(scene: Scene) -> None:
        before = scene.pid
        os.kill(before, signal.SIGKILL)
        await scene.until(lambda: scene.has_another(before), "its successor is in processes.json")
        os.kill(scene.pid, signal.SIGKILL)
        error = await asyncio.wait_for(scene.posted.get(), 100)
        assert isinstance(error, BudgetSpent)
        assert "reward-0 was lost 2 times without a scored group between" in str(error)

    playing(recipe_of(tmp_path, budgets={"max_consecutive_restarts": 1}), tmp_path, play)


def test_a_reward_that_does_not_load_there_is_said_before_the_first_step(two_judges: None, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    (tmp_path / "mine.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match="does not import: ModuleNotFoundError: No module named 'nothing_of_that_name'"):
        playing(recipe, tmp_path, lambda _: asyncio.sleep(0))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"resources": {"licence": 1}}, r"1 replica\(s\) ask for 1 licence each, .* room for 0 \(.* has 0 licence\)"),
        ({"replicas": 3, "resources": {"judge": 1}}, r"3 replica\(s\) ask for 1 judge each, .* for 2 \(.* 2 judge\)"),
        (
            {"num_cpus": 1, "resources": {"judge": 2.5}},
            r"1 replica\(s\) ask for 1 CPU, 2.5 judge each, .* for 0 \(.* 2 CPU, 2 judge",
        ),
        ({"memory_gib": 1e6}, r"1 replica\(s\) ask for 1e\+06 GiB memory each, .* has [\d.]+ GiB memory\)"),
    ],
)
def test_what_no_node_has_is_one_sentence(two_judges: None, tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"^rewards\.placement: {said}"):
        placement.reserve(recipe_of(tmp_path, rewards={"placement": asked}), print)


def test_what_fits_is_no_error(two_judges: None, tmp_path: Path) -> None:
    fits = {"replicas": 2, "num_cpus": 0.5, "resources": {"judge": 1}}
    placement.reserve(recipe_of(tmp_path, rewards={"placement": fits}), print)
