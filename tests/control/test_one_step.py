from __future__ import annotations

from asyncrl.control.one_step import batch_to_fill
from asyncrl.control.settings import Settings

from .world import World


def begin() -> World:
    world = World(Settings(groups_per_step=2, max_staleness=1, max_steps=5, policy="one_step", tokens_per_group=10))
    world.push_first()
    world.join("g0")
    return world


def test_a_gap_in_the_oldest_batch_is_filled_first() -> None:
    assert batch_to_fill([3, 3, 4, 4], 3, 2) == 5
    assert batch_to_fill([3, 4, 4], 3, 2) == 3
    assert batch_to_fill([], 3, 2) == 3


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
