"""A run's groups are read from outside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray

from asyncrl.buffer.actor import BufferActor
from asyncrl.buffer.follow import follow, new_name
from asyncrl.errors import UserError
from asyncrl.recipe.schema import JournalRecipe
from asyncrl.rollout.trajectory import Group, Trajectory, encode


@pytest.fixture(scope="module", autouse=True)
def one_cpu(local_ray: Callable[..., None]) -> None:
    local_ray(num_cpus=1)


def frame(task: int, attempt: int = 0) -> bytes:
    zeros = np.zeros(3, np.int32)
    return encode(
        Group(task, attempt, 0, (Trajectory(zeros, zeros, zeros.astype(np.float32), zeros > 0, 0.0, "stop"),))
    )


def test_groups_are_followed_from_any_cursor_until_the_run_ends(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    buffer = BufferActor.options(name=new_name(run_dir)).remote(run_dir / "journal", JournalRecipe())
    other = BufferActor.options(name=new_name(tmp_path / "run2")).remote(tmp_path / "run2/journal", JournalRecipe())
    ray.get(buffer.put.remote([(task, 0) for task in range(3)], [frame(task) for task in range(3)]), timeout=60)
    ray.get(other.put.remote([(7, 0)], [frame(7)]), timeout=60)
    seen = [(group.task, cursor) for group, cursor in follow(run_dir, wait_s=0.1)]
    assert [task for task, _ in seen] == [0, 1, 2]
    following = follow(run_dir, seen[0][1], wait_s=60)
    assert [next(following)[0].task for _ in range(2)] == [1, 2]
    ray.get(buffer.put.remote([(3, 1)], [frame(3, 1)]), timeout=60)
    assert next(following)[0].attempt == 1
    ray.kill(buffer)
    assert list(following) == []


def test_a_run_that_is_not_under_way_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: no such run is running on this Ray cluster")):
        next(follow(tmp_path))
