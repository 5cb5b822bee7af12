from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["join", "lose", "end"]), st.integers(0, 60)), max_size=60)
)
def test_the_pick_is_the_first_of_the_lightest(happened: list[tuple[int, str, int]]) -> None:
    """As looking at all of them finds it; a restored router goes on alike."""
    router, running, seen = Router(tokens_per_group=10), {}, []
    for number, what, num_tokens in happened:
        name = f"g{number}"
        if what == "join" and name not in running:
            router.join(name)
            running[name] = []
        elif what == "lose":
            router.lose(name)
            running.pop(name, None)
        elif running.get(name):
            router.remove(name, running[name].pop(0))
            router.observe(num_tokens)
            seen.append(num_tokens)
        if running:
            mean = sum(seen) / len(seen) if seen else 10
            loads = {g: sum(mean if n is None else n for n in groups) for g, groups in running.items()}
            picked = router.pick()
            assert loads[picked] == pytest.approx(min(loads.values()))
            counts = {g: len(groups) for g, groups in running.items()}
            assert Router.restore(10, router.state(), counts).pick() == picked
            known = num_tokens if num_tokens % 3 == 0 else None
            router.add(picked, known)
            running[picked].append(known)
        assert bool(router) == bool(running)


def test_a_group_waits_for_the_first_generator_that_has_room() -> None:
    world = plain(groups_per_step=4, max_steps=8, groups_per_replica=3)
    world.join("g1")
    assert [a.generator for a in world.running.values()] == ["g0"] * 3 + ["g1"] * 3
    assert len(world.running) == 6, "of 8 slots"
    world.finish(4, 0, 0)
    assert world.running[6].generator == "g1"
    world.finish(0, 0, 0)
    assert world.running[7].generator == "g0"
    world.finish(6, 0, 0)
    assert len(world.running) == 5, "all slots are held"


def test_a_group_that_waited_has_the_newest_weights() -> None:
    """In the queue of an engine it would have the version of its start for its age."""
    world = plain(groups_per_step=1, max_staleness=3, max_steps=8, groups_per_replica=1)
    ages = []
    for _ in range(4):
        [task] = world.running
        ages.append(world.steps_done - world.running[task].start_version)
        world.finish(task, world.running[task].start_version, world.live)
        world.step_done()
        world.weights_live()
    assert ages == [0, 1, 1, 1]
