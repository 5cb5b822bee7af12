"""Resume, first form: the run goes on from a checkpoint of the controller, and ends like an uninterrupted one."""

from __future__ import annotations

import json
import random
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.control.controller import Controller
from asyncrl.control.messages import (
    GeneratorJoined,
    GroupFailed,
    GroupFiltered,
    GroupFinished,
    Train,
    WeightsLive,
)
from asyncrl.control.settings import Settings
from asyncrl.errors import UserError

from .world import World

LIMITS = {"groups_per_step": 3, "max_steps": 6, "tokens_per_group": 10}


def fate(world: World) -> bool:
    """Ends a running task that is bound to be filtered or failed: an outcome that depends on the task only."""
    for task in world.running:
        if task % 7 in (2, 5):
            event, reason = (GroupFiltered, "equal") if task % 7 == 2 else (GroupFailed, "broken")
            world.drop(task, event, reason)
            return True
    return False


def begin(wanted: Settings) -> World:
    world = World(wanted)
    world.push_first()
    world.join("g0")
    world.lose("g0")
    world.join("g1")
    return world


def finish(world: World, rng: random.Random) -> dict:
    while not world.controller.finished:
        if not fate(world):
            world.happen(rng)
    return asdict(world.controller.ledger)


POLICIES = [{"max_staleness": 2, "selection_window": 3}, {"max_staleness": 1, "policy": "one_step"}]
POLICIES += [{"max_staleness": 0, "policy": "sync"}]


@given(st.sampled_from(POLICIES), st.integers(1, 5), st.randoms(use_true_random=False), st.integers(0, 25))
@settings(max_examples=60, deadline=None)
def test_the_final_ledger_is_that_of_an_uninterrupted_run(policy, step, rng, num_lost) -> None:
    wanted = Settings(**LIMITS, **policy)
    world = begin(wanted)
    while world.steps_done < step or world.leased:
        if not fate(world):
            world.happen(rng)
    saved = json.dumps(world.controller.state())
    assert world.steps_done >= step

    # The uninterrupted run goes on; what it does after the checkpoint is lost to the other one.
    uninterrupted = finish(world, rng)
    assert uninterrupted["requeued"] > 0
    assert uninterrupted["filtered"] > 0

    resumed = Controller.restore(wanted, json.loads(saved))
    assert resumed.decide() == []
    assert resumed.ledger.ready == resumed.ledger.leased == 0
    resumed.ledger.check()
    before, after = json.loads(saved), json.loads(json.dumps(resumed.state()))
    for task in before["tasks"]["under_way"]:
        task[1] += 1
    assert after == before, "a restored state is the saved one with new attempts"
    assert finish(adopt(wanted, resumed), rng) == uninterrupted


def adopt(wanted: Settings, controller: Controller) -> World:
    """A world whose model takes over what the checkpoint says; it must agree with it from then on."""
    world, state = World(wanted, controller), controller.state()
    tasks = state["tasks"]
    world.drawn, world.steps_done = tasks["drawn"], state["steps_done"]
    world.waiting = {number: attempt for number, attempt, _, _ in tasks["under_way"]}
    world.trained = {-1 - i: i // wanted.groups_per_step for i in range(tasks["trained"])}
    world.num_finished, world.finished_tokens = state["num_finished"], state["finished_tokens"]
    world.known_tokens = {number: known for number, _, _, known in tasks["under_way"] if known is not None}
    world.counts.update(requeued=tasks["requeued"], stale=tasks["stale"])
    world.reasons["filtered"].update(tasks["filtered"])
    world.reasons["failed"].update(tasks["failed"])
    world.join("g0")
    world.join("g1")
    world.push_first()
    return world


def checkpoint(wanted: Settings) -> dict:
    """After step 0, with work under way."""
    world = begin(wanted)
    while not world.leased:
        world.finish(next(iter(world.running)), 0, 0)
    world.step_done()
    return world.controller.state()


def test_tasks_start_again_in_their_old_order_with_a_new_attempt() -> None:
    wanted = Settings(**LIMITS, max_staleness=1)
    state = checkpoint(wanted)
    world = adopt(wanted, Controller.restore(wanted, state))
    # Tasks 3 to 5 were requeued once, when g0 was lost; the slots of batch 0 are free again.
    assert [(t, a.number) for t, a in world.running.items()] == [(3, 2), (4, 2), (5, 2), (6, 0), (7, 0), (8, 0)]


def test_one_step_after_a_restore_is_one_step_but_for_the_first_batch() -> None:
    wanted = Settings(**LIMITS, max_staleness=1, policy="one_step")
    world = adopt(wanted, Controller.restore(wanted, checkpoint(wanted)))
    finish(world, random.Random(1))
    assert world.ages == [0, 1, 1, 1, 1]


def test_a_state_is_not_taken_during_a_step() -> None:
    world = begin(Settings(**LIMITS, max_staleness=0))
    for task in range(3):
        world.finish(task, 0, 0)
    with pytest.raises(RuntimeError, match="batch 0 is being trained"):
        world.controller.state()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups_per_step": 2}, "set groups_per_step=3"),
        ({"policy": "one_step"}, "set policy=bounded"),
        ({"max_steps": 1}, "max_steps to at least 2"),
    ],
)
def test_settings_that_cannot_continue_the_run(changes, message: str) -> None:
    state = checkpoint(Settings(**LIMITS, max_staleness=1))
    with pytest.raises(UserError, match=message):
        Controller.restore(Settings(**{**LIMITS, "max_staleness": 1, **changes}), state)


def test_a_smaller_staleness_takes_effect_on_resume() -> None:
    state = checkpoint(Settings(**LIMITS, max_staleness=2))
    controller = Controller.restore(Settings(**LIMITS, max_staleness=0), state)
    for event in (GeneratorJoined("g0"), WeightsLive(1)):
        controller.handle(event)
    assert controller.ledger.running == 6
    assert [start.task for start in controller.decide()] == [3, 4, 5], "one batch, though two were under way"
    for task in (5, 4, 3):
        controller.handle(GroupFinished(task, 2, 1, 1, 10))
    assert controller.decide() == [Train(1, ((3, 2), (4, 2), (5, 2)), 1)]
