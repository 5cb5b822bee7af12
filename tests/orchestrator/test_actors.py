"""Where Ray puts the actors of a run; the GPUs are made up."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import remove_placement_group

from asyncrl.cluster import placement
from asyncrl.cluster.placement import Places
from asyncrl.data.tasks import Task
from asyncrl.errors import DeadlineExceeded, UserError
from asyncrl.orchestrator.actors import Actors
from asyncrl.recipe.schema import Recipe
from asyncrl.storage.sight import Sight

pytestmark = pytest.mark.slow

RECIPE = Recipe.model_validate(
    {
        "model": "x",
        "data": {"path": "x"},
        "reward": "x",
        "max_steps": 1,
        "rollout": {"engine": "simulated"},
        "trainer": {"ranks": 2, "gpus_per_rank": 1},
        "deadlines": {"start_s": 1},
    }
)


@ray.remote(num_gpus=1)
class Neighbour:
    def ping(self) -> None: ...


@pytest.fixture(scope="module")
def two_gpus(local_ray: Callable[..., None]) -> None:
    local_ray(num_cpus=2, num_gpus=2)


Reserve = Callable[[Recipe, Callable[[str], None]], Places]


@pytest.fixture
def reserve(two_gpus: None) -> Iterator[Reserve]:
    """placement.reserve; what a test has reserved is free again after it."""
    taken: list[Places] = []

    def take(recipe: Recipe, say: Callable[[str], None]) -> Places:
        taken.append(placement.reserve(recipe, say))
        return taken[-1]

    yield take
    for place in taken:
        if place._group is not None:
            remove_placement_group(place._group)
    until = time.monotonic() + 30
    while ray.available_resources().get("GPU", 0) < 2 and time.monotonic() < until:
        time.sleep(0.1)


def test_who_asks_for_no_gpu_sees_none(reserve: Reserve, tmp_path: Path) -> None:
    keys = RECIPE.model_dump(mode="json")
    recipe = Recipe.model_validate({**keys, "trainer": {"ranks": 1}, "rollout": {"engine": "simulated"}})
    actors = Actors(recipe, "x", Sight.begin(tmp_path), tmp_path, reserve(recipe, print))
    handles = [actors.generator("generator-0", None), *actors.trainer(None).handles]  # type: ignore[arg-type]
    seen = [handle.__ray_call__.remote(lambda actor: os.environ.get("CUDA_VISIBLE_DEVICES")) for handle in handles]
    assert ray.get(seen, timeout=120) == ["", ""]


def test_room_is_kept_for_those_that_the_run_begins_with(reserve: Reserve) -> None:
    rollout = {"engine": "simulated", "gpus_per_replica": 1, "replicas": {"min": 1, "max": 3}}
    keys = RECIPE.model_dump(mode="json")
    recipe = Recipe.model_validate({**keys, "trainer": {"ranks": 1, "gpus_per_rank": 1}, "rollout": rollout})
    found = reserve(recipe, print)
    assert found.of_generator(0).placement_group_bundle_index == 1  # type: ignore[union-attr]
    assert found.of_generator(1) == "SPREAD"


def test_a_generator_answers_with_all_groups_of_the_run_under_way(reserve: Reserve, tmp_path: Path) -> None:
    keys = {**RECIPE.model_dump(mode="json"), "groups_per_step": 700, "trainer": {"ranks": 1}}
    recipe = Recipe.model_validate({**keys, "rollout": {"engine": "simulated"}})
    actors = Actors(recipe, "x", Sight.begin(tmp_path), tmp_path, reserve(recipe, print))
    handle = actors.generator("generator-0", None)  # type: ignore[arg-type]

    def hang(actor: Any) -> None:
        class Hangs:
            async def run(self, task: Task, attempt: int) -> None:
                await asyncio.Event().wait()

        actor.runner = Hangs()

    ray.get(handle.__ray_call__.remote(hang), timeout=60)
    groups = [handle.run_group.remote(Task(number, 0, "", {}), 0) for number in range(1400)]
    ray.get(handle.placed.remote(), timeout=60)
    assert ray.wait(groups, timeout=0)[0] == []
    ray.kill(handle)


def test_a_cluster_that_is_too_small_says_what_is_asked_present_and_where(reserve: Reserve) -> None:
    rollout = RECIPE.rollout.model_copy(update={"gpus_per_replica": 1})
    with pytest.raises(UserError) as error:
        reserve(RECIPE.model_copy(update={"rollout": rollout}), print)
    assert re.search(
        r"asks for 3 GPUs \(2 trainer ranks x 1 \+ 1 generator x 1\), the cluster has 2 \(\S+ 2 of 2 free\): "
        r"no room for 1 generator x 1; lower",
        str(error.value),
    )


def allocator(handle: Any) -> str | None:
    """Settings of torch's memory on a GPU."""
    seen = handle.__ray_call__.remote(lambda actor: os.environ.get("PYTORCH_ALLOC_CONF"))
    return ray.get(seen, timeout=120)  # type: ignore[no-any-return]


def test_handles_of_cuda_ipc_are_of_blocks_that_do_not_grow(reserve: Reserve, tmp_path: Path) -> None:
    keys = with_shares(0.6, 0.4).model_dump(mode="json")
    recipe = Recipe.model_validate({**keys, "weights": {"channel": "cuda_ipc"}})
    actors = Actors(recipe, "x", Sight.begin(tmp_path), tmp_path, reserve(recipe, print))
    assert allocator(actors.trainer(None).handles[0]) is None  # type: ignore[arg-type]


def with_shares(of_rank: float, of_replica: float) -> Recipe:
    trainer = {"ranks": 1, "gpus_per_rank": of_rank}
    rollout = {"engine": "simulated", "gpus_per_replica": of_replica}
    return Recipe.model_validate({**RECIPE.model_dump(mode="json"), "trainer": trainer, "rollout": rollout})


def test_shares_of_one_gpu_are_of_the_same_one(reserve: Reserve, tmp_path: Path) -> None:
    recipe = with_shares(0.6, 0.4)
    actors = Actors(recipe, "x", Sight.begin(tmp_path), tmp_path, reserve(recipe, print))
    handles = [actors.generator("generator-0", None), *actors.trainer(None).handles]  # type: ignore[arg-type]
    seen = [handle.__ray_call__.remote(lambda actor: ray.get_gpu_ids()) for handle in handles]
    generator, trainer = ray.get(seen, timeout=120)
    assert generator == trainer
    assert allocator(handles[-1]) == "expandable_segments:True"
    assert len(trainer) == 1
    assert ray.available_resources()["GPU"] == 1


def test_shares_that_make_more_than_one_gpu_need_two(reserve: Reserve) -> None:
    recipe = with_shares(0.6, 0.6)
    three = recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"replicas": 2})})
    with pytest.raises(UserError, match=r"asks for 1.8 GPUs .* no room for 1 generator x 0.6"):
        reserve(three, print)


def test_all_take_their_places_together_or_none_does(reserve: Reserve, tmp_path: Path) -> None:
    neighbour = Neighbour.remote()
    ray.get(neighbour.ping.remote(), timeout=60)
    said: list[str] = []
    with pytest.raises(DeadlineExceeded, match=r"asks for 2 GPUs \(2 trainer ranks x 1\), and got no room within 1 s"):
        reserve(RECIPE, said.append)
    assert re.search(r"waiting for others on the cluster: .* the cluster has 2 \(\S+ 1 of 2 free\)", said[0])
    assert ray.available_resources()["GPU"] == 1
    ray.kill(neighbour)
    ranks = Actors(RECIPE, "x", Sight.begin(tmp_path), tmp_path, reserve(RECIPE, said.append)).trainer(neighbour)
    ray.get([handle.ping.remote() for handle in ranks.handles], timeout=120)
    assert ray.available_resources().get("GPU", 0) == 0
