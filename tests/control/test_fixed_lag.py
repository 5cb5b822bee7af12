from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.control.fixed_lag import all_generated, batch_to_fill
from asyncrl.control.settings import Settings

from .world import World

ESTIMATE = {"tokens_per_group": 10}


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_a_batch_is_wholly_of_the_version_that_many_steps_before(lag, size, steps, num_generators, rng) -> None:
    """In any order of events: no token of a later version, every version published, never two of them unsent."""
    world = World(Settings(groups_per_step=size, max_staleness=lag, max_steps=steps, policy="stale_k", **ESTIMATE))
    trained: dict[int, set[tuple[int, int, int]]] = {}
    world.push_first()
    for i in range(num_generators):
        world.join(f"g{i}")
    while not world.controller.finished:
        world.happen(rng)
        for attempt in world.leased.values():
            trained.setdefault(world.steps_done, set()).add((attempt.start_version, *attempt.versions))
    assert trained == {k: {(max(0, k - lag),) * 3} for k in range(steps)}
    assert world.lives == list(range(steps + 1))


def test_a_lag_of_one_decides_as_one_step() -> None:
    histories = []
    for policy in ("one_step", "stale_k"):
        world = World(Settings(groups_per_step=3, max_staleness=1, max_steps=8, policy=policy, **ESTIMATE))
        world.push_first()
        world.join("g0")
        world.drain(random.Random(3))
        histories.append(world.history[1:])
    assert histories[0] == histories[1]


def begin(lag: int = 1) -> World:
    policy = "one_step" if lag == 1 else "stale_k"
    world = World(Settings(groups_per_step=2, max_staleness=lag, max_steps=5, policy=policy, tokens_per_group=10))
    world.push_first()
    world.join("g0")
    return world


def test_a_gap_in_the_oldest_batch_is_filled_first() -> None:
    assert batch_to_fill({3: 2, 4: 2}, 3, 2) == 5
    assert batch_to_fill({3: 1, 4: 2}, 3, 2) == 3
    assert batch_to_fill({}, 3, 2) == 3


def test_batches_are_complete_or_not() -> None:
    assert all_generated({3: 2, 4: 2}, range(3, 5), 2)
    assert not all_generated({3: 2, 4: 1}, range(3, 5), 2)
    assert all_generated({}, range(5, 5), 2)


def test_with_a_lag_of_three_four_batches_come_from_the_first_version() -> None:
    world = begin(lag=3)
    assert list(world.running) == list(range(8))
    for task in range(7):
        world.finish(task, 0, 0)
    world.step_done()
    # Version 1 is not out: its trainer may not go on, for it would hold two versions that are not out.
    assert world.publishing is None
    assert not world.leased
    world.finish(7, 0, 0)
    assert world.publishing == 1
    assert world.leased.keys() == {2, 3}
    world.step_done()
    assert not world.leased
    world.weights_live()
    assert list(world.running) == [8, 9]
    for task in (8, 9):
        world.finish(task, 1, 1)
    assert world.publishing == 2
    assert world.leased.keys() == {4, 5}


def test_a_version_is_held_back_until_its_batch_is_generated() -> None:
    world = begin()
    for task in (0, 1):
        world.finish(task, 0, 0)
    world.step_done()
    assert world.publishing is None
    assert list(world.running) == [2, 3]
    world.finish(2, 0, 0)
    assert world.publishing is None
    world.finish(3, 0, 0)
    assert world.publishing == 1
    assert world.leased.keys() == {2, 3}


def test_batches_train_their_own_members_whatever_finishes_first() -> None:
    world = begin()
    for task in (2, 3):
        world.finish(task, 0, 0)
    assert not world.leased
    for task in (0, 1):
        world.finish(task, 0, 0)
    assert world.leased.keys() == {0, 1}


def test_a_batch_whose_version_was_never_published_takes_the_next_one() -> None:
    world = begin()
    for task in range(4):
        world.finish(task, 0, 0)
    world.step_done()
    assert world.publishing == 1
    world.lose("g0")
    world.publish_failed()
    world.step_done()
    assert not world.running
    world.join("g1")
    assert world.publishing == 2
    world.weights_live()
    assert len(world.running) == 4
    for task in list(world.running):
        world.finish(task, 2, 2)
    world.step_done()
    world.step_done()
    assert world.ages == [0, 1, 0, 1]
