from __future__ import annotations

import pytest

from asyncrl.control.routing import Router

from .test_controller import plain


def test_groups_are_spread_evenly_in_the_order_of_joining() -> None:
    router = Router(tokens_per_group=100)
    for generator in ("b", "a"):
        router.join(generator)
    picks = []
    for _ in range(4):
        picks.append(router.pick())
        router.add(picks[-1], None)
    assert picks == ["b", "a", "b", "a"]


def test_a_group_of_known_length_weighs_its_length() -> None:
    router = Router(tokens_per_group=100)
    for generator in ("a", "b"):
        router.join(generator)
    router.add("a", 250)
    for _ in range(3):
        assert router.pick() == "b"
        router.add("b", None)
    assert router.pick() == "a"
    router.observe(50)
    # Three unknown groups now weigh 150.
    assert router.pick() == "b"
    router.remove("a", 250)
    assert router.pick() == "a"


def test_a_generator_that_finishes_faster_gets_more() -> None:
    world = plain(groups_per_step=4, max_steps=8)
    world.join("g1")
    assert {a.generator for a in world.running.values()} == {"g0"}
    for task in range(4):
        world.finish(task, 0, 0)
    world.step_done()
    world.weights_live()
    assert [a.generator for t, a in world.running.items() if t >= 8] == ["g1"] * 4


def test_joining_twice_is_an_error_and_losing_twice_is_not() -> None:
    router = Router(tokens_per_group=100)
    router.join("a")
    with pytest.raises(ValueError, match="already serving"):
        router.join("a")
    router.lose("a")
    router.lose("a")
    assert not router.alive
    router.join("a")
    assert router.pick() == "a"
