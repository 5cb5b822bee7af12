"""A run is a function of its history: taken up after a crash it goes on where it stood, under new settings too."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.control.codec import from_json, to_json
from asyncrl.control.controller import Controller
from asyncrl.control.history import Decisions, HistoryError, Snapshot, replay
from asyncrl.control.messages import (
    Discard,
    Event,
    GeneratorJoined,
    GroupFailed,
    GroupFiltered,
    GroupFinished,
    Start,
    Train,
    WeightsLive,
)
from asyncrl.control.settings import Settings
from asyncrl.errors import UserError

from .world import World, as_json

LIMITS = {"groups_per_step": 3, "max_steps": 6, "tokens_per_group": 10}
POLICIES = [{"max_staleness": 2, "selection_window": 3}, {"max_staleness": 1, "policy": "one_step"}]
POLICIES += [{"max_staleness": 0, "policy": "sync"}, {"max_staleness": 3, "policy": "stale_k"}]
POLICIES += [{"max_staleness": 1.5, "push_lag": 2}]
POLICIES += [{"max_staleness": 2, "on_stale": "drop", "backup_groups": 2}]
POLICIES += [{"max_staleness": 2, "groups_per_replica": 2}]
NEW = {"push_lag", "backup_groups", "groups_per_replica"}
"""Keys that came after the first version."""


def fate(world: World) -> bool:
    """Ends a running task that is bound to be filtered or failed: an outcome that depends on the task only."""
    for task in world.running:
        if task % 7 in (2, 5):
            event, reason = (GroupFiltered, "equal") if task % 7 == 2 else (GroupFailed, "broken")
            world.drop(task, event, reason)
            return True
    return False


def run(wanted: Settings, rng: random.Random, crash_every: int = 0) -> World:
    """A whole run; every so many happenings everything dies but the history."""
    world = World(wanted)
    world.push_first()
    world.join("g0")
    happened = 0
    while not (world.controller.finished and world.steps_done == wanted.max_steps):
        happened += 1
        if crash_every and happened % crash_every == 0:
            while fate(world):
                pass
            world.crash(rng.randint(0, 2))
            world.join("g0")
        elif not fate(world):
            world.happen(rng)
    return world


@given(st.sampled_from(POLICIES), st.randoms(use_true_random=False), st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_a_run_with_crashes_ends_like_one_without(policy, rng, crash_every) -> None:
    wanted = Settings(**LIMITS, **policy)
    calm, troubled = run(wanted, rng), run(wanted, rng, crash_every)
    moved = {"requeued": troubled.counts["requeued"]}
    if wanted.on_stale == "drop":
        # Who finishes first decides who was too late.
        moved["stale"] = troubled.counts["stale"]
    expected = asdict(calm.controller.ledger) | moved
    assert asdict(troubled.controller.ledger) == expected
    assert expected["filtered"] > 0
    assert expected["failed"] > 0


def batches(world: World) -> Iterator[list[int]]:
    for entry in world.history:
        for decision in entry.decisions if isinstance(entry, Decisions) else ():
            if isinstance(decision, Train):
                yield [task for task, _ in decision.groups]


@given(st.randoms(use_true_random=False), st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_synchronous_batches_are_the_same_whatever_crashes(rng, crash_every) -> None:
    """The schedule is fixed: the same tasks in the same order, so the same sums."""
    wanted = Settings(**LIMITS, max_staleness=0, policy="sync")
    assert list(batches(run(wanted, rng, crash_every))) == list(batches(run(wanted, rng)))


def test_one_step_stays_one_step_over_crashes() -> None:
    wanted = Settings(**LIMITS, max_staleness=1, policy="one_step")
    assert run(wanted, random.Random(1), crash_every=5).ages == [0, 1, 1, 1, 1, 1]


def begin(wanted: Settings) -> World:
    """After step 0, with work in flight and groups ready."""
    world = World(wanted)
    world.push_first()
    world.join("g0")
    while not world.leased:
        world.finish(next(iter(world.running)), 0, 0)
    world.finish(next(iter(world.running)), 0, 0)
    world.step_done()
    world.weights_live()
    return world


def test_a_changed_decision_is_found() -> None:
    world = begin(Settings(**LIMITS, max_staleness=1))
    number = next(i for i, entry in enumerate(world.history) if isinstance(entry, Decisions))
    first = world.history[number].decisions[0]
    assert isinstance(first, Start)
    changed = replace(world.history[number], decisions=(replace(first, task=99), *world.history[number].decisions[1:]))
    with pytest.raises(HistoryError, match=f"entry {number} of the history says"):
        replay([*world.history[:number], changed, *world.history[number + 1 :]])


def test_a_changed_snapshot_is_found() -> None:
    world = begin(Settings(**LIMITS, max_staleness=1))
    state = as_json(world.controller.state())
    replay([*world.history, Snapshot(state)])
    with pytest.raises(HistoryError, match="leads to"):
        replay([*world.history, Snapshot(state | {"live": 0})])


def test_a_history_begins_with_a_snapshot() -> None:
    with pytest.raises(HistoryError, match="does not begin with a snapshot"):
        replay([WeightsLive(0)])
    with pytest.raises(HistoryError, match="empty"):
        replay([])


def test_groups_in_a_journal_of_before_skip_nothing() -> None:
    assert from_json(["GroupFinished", 3, 0, 1, 1, 10]) == GroupFinished(3, 0, 1, 1, 10, skip=())
    assert from_json(["GroupFiltered", 3, 0, "equal_rewards"]) == GroupFiltered(3, 0, "equal_rewards", skip=())


@pytest.mark.parametrize("cls", get_args(Event))
def test_every_event_comes_back_from_json(cls: type) -> None:
    fields = [{"str": f"x{i}", "int": i}.get(kind, (i, 99)) for i, kind in enumerate(cls.__annotations__.values())]
    assert from_json(as_json({"e": to_json(cls(*fields))})["e"]) == cls(*fields)


def test_batches_come_back_as_tuples() -> None:
    train = Train(3, ((1, 0), (2, 4)), 2)
    assert from_json(as_json({"e": to_json(train)})["e"]) == train


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups_per_step": 2}, "set groups_per_step=3"),
        ({"policy": "one_step"}, "set policy=bounded"),
        ({"max_steps": 1}, "max_steps to at least 3"),
    ],
)
def test_settings_that_cannot_continue_the_run(changes, message: str) -> None:
    controller = begin(Settings(**LIMITS, max_staleness=1)).controller
    with pytest.raises(UserError, match=message):
        controller.change(Settings(**{**LIMITS, "max_staleness": 1, **changes}))


def test_a_smaller_staleness_takes_effect_on_resume() -> None:
    """Groups that are ready but too old for it start again; no more start than it allows."""
    world = begin(Settings(**LIMITS, max_staleness=2))
    controller = Controller.restore(as_json(world.controller.state()))
    assert controller.ready() == [(3, 0)]
    controller.change(Settings(**LIMITS, max_staleness=0))
    for event in (*controller.interrupt(), GeneratorJoined("g0"), WeightsLive(1)):
        controller.handle(event)
    decisions = controller.decide()
    assert decisions[0] == Discard(3, 0)
    assert len([d for d in decisions if isinstance(d, Start)]) == 3, "one batch, though three were in flight"
    assert controller.ledger.stale == 1
    for task in decisions[1:]:
        controller.handle(GroupFinished(task.task, task.attempt, 1, 1, 10))
    [train] = [d for d in controller.decide() if isinstance(d, Train)]
    assert train.min_version == 1


def test_the_lag_of_a_run_stays() -> None:
    """With the slots of a shorter one, batches 1 to 3, which are ready, would leave none to batch 0."""
    wanted = {"groups_per_step": 1, "max_steps": 8, "tokens_per_group": 10, "policy": "stale_k"}
    world = World(Settings(**wanted, max_staleness=3))
    world.push_first()
    world.join("g0")
    for task in (1, 2, 3):
        world.finish(task, 0, 0)
    with pytest.raises(UserError, match=r"max_staleness is 1, .* set max_staleness=3 to resume it"):
        world.controller.change(Settings(**wanted, max_staleness=1))


def test_a_journal_from_before_a_setting_existed_is_read() -> None:
    world = run(Settings(**LIMITS, max_staleness=1), random.Random(0), crash_every=5)
    old = [
        Snapshot(entry.state | {"settings": {k: v for k, v in entry.state["settings"].items() if k not in NEW}})
        if isinstance(entry, Snapshot)
        else entry
        for entry in world.history
    ]
    assert sum(isinstance(entry, Snapshot) for entry in old) > 2
    assert replay(old).state() == world.controller.state()


def test_a_journal_with_a_settings_earlier_name_is_read() -> None:
    world = run(Settings(**LIMITS, max_staleness=1, on_stale="mask"), random.Random(0), crash_every=5)

    def earlier(entry: Snapshot) -> Snapshot:
        settings = dict(entry.state["settings"])
        settings["over_age"] = settings.pop("on_stale")
        return Snapshot(entry.state | {"settings": settings})

    old = [earlier(entry) if isinstance(entry, Snapshot) else entry for entry in world.history]
    assert replay(old).state() == world.controller.state()


def test_more_steps_take_effect_on_resume() -> None:
    world = run(Settings(**LIMITS, max_staleness=1), random.Random(0))
    world.controller.change(Settings(**{**LIMITS, "max_steps": 8}, max_staleness=1))
    assert not world.controller.finished
    assert any(isinstance(decision, Start) for decision in world.controller.decide())


def test_a_limit_takes_effect_on_resume() -> None:
    """Set for a run that began without: groups that run count, those of a length that is known as well."""
    world = begin(Settings(**LIMITS, max_staleness=2))
    controller = Controller.restore(as_json(world.controller.state()))
    limited = Settings(**LIMITS, max_staleness=2, groups_per_replica=2)
    controller.change(limited)
    number = len(controller.running())
    for task, attempt in controller.running()[: number - 2]:
        controller.handle(GroupFailed(task, attempt, "broken"))
    assert not any(isinstance(d, Start) for d in controller.decide()), "two are running"
    again = Controller.restore(as_json(controller.state()))
    for one in (controller, again):
        one.handle(GroupFailed(*one.running()[0], "broken"))
        assert sum(isinstance(d, Start) for d in one.decide()) == 1
