"""Random event orders: `World` checks every decision, here is only what may happen."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from asyncrl.control.controller import Controller
from asyncrl.control.messages import (
    Discard,
    GeneratorJoined,
    GroupFailed,
    GroupFiltered,
    GroupFinished,
    Publish,
    PublishFailed,
    StepDone,
    Train,
    WeightsLive,
)
from asyncrl.control.settings import Settings

from .world import World

POLICIES = ["bounded", "bounded", "bounded", "one_step", "stale_k", "sync"]


@st.composite
def any_settings(draw: st.DrawFn, policies=tuple(POLICIES), least_steps: int = 1) -> Settings:
    policy = draw(st.sampled_from(policies))
    on_stale = draw(st.sampled_from(["wait", "drop", "mask"]))
    lags = {"one_step": st.just(1), "stale_k": st.integers(1, 5), "sync": st.just(0)}
    whole = st.integers(0, 4)
    fractions = st.sampled_from([4, 5, 10]).flatmap(lambda d: st.integers(0, 4 * d).map(lambda n: n / d))
    bounds = whole | fractions.filter(lambda S: S % 1) if on_stale == "wait" else whole
    max_staleness = draw(lags.get(policy, bounds))
    return Settings(
        groups_per_step=draw(st.integers(1, 4)),
        max_staleness=max_staleness,
        max_steps=draw(st.integers(least_steps, 8)),
        push_lag=draw(st.integers(1, int(max_staleness) + 1)) if policy == "bounded" else 1,
        backup_groups=draw(st.integers(0, 3)) if on_stale == "drop" and policy in ("bounded", "sync") else 0,
        selection_window=draw(st.integers(1, 6)) if (policy, on_stale) == ("bounded", "wait") else 1,
        groups_per_replica=draw(st.sampled_from([0, 0, 1, 2, 5])),
        on_stale=on_stale,
        policy=policy,
        tokens_per_group=10,
    )


class Disorder(RuleBasedStateMachine):
    """Everything that can happen, in any order; at the end the run is left to finish."""

    @initialize(settings=any_settings(), num_generators=st.integers(0, 3), first=st.booleans())
    def begin(self, settings: Settings, num_generators: int, first: bool) -> None:
        self.world = World(settings)
        self.past: list[tuple[int, int]] = []
        if first:
            self.world.push_first()
        for i in range(num_generators):
            self.world.join(f"g{i}")

    def pick(self, where: float) -> int:
        """A running task, by its place in the order of starts from 0 to 1; it may come back as obsolete."""
        tasks = list(self.world.running)
        task = tasks[int(where * len(tasks))]
        self.past.append((task, self.world.running[task].number))
        return task

    where = st.floats(0, 1, exclude_max=True)

    @precondition(lambda self: self.world.live < 0)
    @rule()
    def push_first(self) -> None:
        self.world.push_first()

    @rule(generator=st.sampled_from(["g0", "g1", "g2", "g3"]))
    def join_or_lose(self, generator: str) -> None:
        if generator in self.world.generators:
            self.past += [(t, a.number) for t, a in self.world.running.items() if a.generator == generator]
            self.world.lose(generator)
        else:
            self.world.join(generator)

    @precondition(lambda self: self.world.running)
    @rule(where=where, low=where, high=where, num_tokens=st.integers(1, 100))
    def finish(self, where: float, low: float, high: float, num_tokens: int) -> None:
        task = self.pick(where)
        first, last = self.world.versions_of(task)
        oldest = first + int(low * (last - first + 1))
        self.world.finish(task, oldest, oldest + int(high * (last - oldest + 1)), num_tokens)

    @precondition(lambda self: self.world.running)
    @rule(count=st.integers(1, 8), newest_first=st.booleans())
    def finish_many(self, count: int, newest_first: bool) -> None:
        for _ in range(count):
            if self.world.running:
                task = self.pick(0.999 if newest_first else 0)
                first, last = self.world.versions_of(task)
                self.world.finish(task, first, last)

    @precondition(lambda self: self.world.running)
    @rule(where=where, event=st.sampled_from([GroupFiltered, GroupFailed]), reason=st.sampled_from("ab"))
    def drop(self, where: float, event: type, reason: str) -> None:
        self.world.drop(self.pick(where), event, reason)

    @precondition(lambda self: self.past)
    @rule(where=where, kind=st.sampled_from([GroupFinished, GroupFiltered, GroupFailed]))
    def report_obsolete(self, where: float, kind: type) -> None:
        task, attempt = self.past[int(where * len(self.past))]
        tables = (self.world.running, self.world.ready, self.world.leased)
        if not any(task in table and table[task].number == attempt for table in tables):
            self.world.report_obsolete(task, attempt, kind)

    @precondition(lambda self: self.world.leased)
    @rule()
    def step_done(self) -> None:
        self.world.step_done()

    @precondition(lambda self: self.world.publishing is not None)
    @rule(fails=st.integers(0, 3).map(lambda n: n == 3))
    def publish_ends(self, fails: bool) -> None:
        if fails:
            self.world.publish_failed()
        else:
            self.world.weights_live()

    @rule(committed=st.integers(0, 2), lost=st.integers(0, 2), change=st.booleans(), data=st.data())
    def crash(self, committed: int, lost: int, change: bool, data: st.DataObject) -> None:
        now, new = self.world.settings, None
        self.past += [(t, a.number) for t, a in (self.world.running | self.world.ready).items()]
        if change:
            new = replace(data.draw(any_settings([now.policy], now.max_steps)), groups_per_step=now.groups_per_step)
            new = replace(new, max_staleness=now.max_staleness) if now.policy == "stale_k" else new
        self.world.crash(committed, lost, new)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain(random.Random(0))


def test_every_order_of_events_keeps_the_invariants_and_ends() -> None:
    run_state_machine_as_test(Disorder, settings=settings(max_examples=200, stateful_step_count=60, deadline=None))


@given(any_settings(), st.randoms(use_true_random=False), st.integers(1, 3))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_run_without_accidents_ends(wanted: Settings, rng: random.Random, num_generators: int) -> None:
    world = World(wanted)
    world.push_first()
    for i in range(num_generators):
        world.join(f"g{i}")
    world.drain(rng)
    assert world.drawn == len(world.trained)
    if wanted.on_stale == "wait":
        assert world.counts["stale"] == 0
    if wanted.policy in ("one_step", "stale_k"):
        assert world.ages == [min(k, wanted.max_staleness) for k in range(wanted.max_steps)]


def plain(**changes) -> World:
    """P = 2, S = 1, one generator, version 0 live: tasks 0 to 3 are running."""
    wanted = {"groups_per_step": 2, "max_staleness": 1, "max_steps": 4, "tokens_per_group": 10} | changes
    world = World(Settings(**wanted))
    world.push_first()
    world.join("g0")
    return world


def test_nothing_starts_before_weights_are_live() -> None:
    world = World(Settings(groups_per_step=2, max_staleness=1, max_steps=4, tokens_per_group=10))
    world.join("g0")
    assert world.drawn == 0
    world.push_first()
    assert list(world.running) == [0, 1, 2, 3]


def test_training_does_not_wait_for_a_publish_and_only_the_newest_version_is_published() -> None:
    world = plain(max_staleness=2)
    for task in range(4):
        world.finish(task, 0, 0)
    world.step_done()
    assert world.publishing == 1
    world.step_done()
    for task in (4, 5):
        world.finish(task, 0, 1)
    world.step_done()
    assert (world.steps_done, world.publishing) == (3, 1)
    world.weights_live()
    assert world.publishing == 3


def test_versions_do_not_go_back() -> None:
    world = plain()
    for task in (0, 1):
        world.finish(task, 0, 0)
    world.step_done()
    world.weights_live()
    with pytest.raises(ValueError, match="only 1 to 1 can be"):
        world.controller.handle(WeightsLive(0))


def test_a_lost_groups_task_is_started_elsewhere_behind_the_others() -> None:
    world = plain()
    world.join("g1")
    world.lose("g0")
    assert {a.generator for a in world.running.values()} == {"g1"}
    assert [a.number for a in world.running.values()] == [1] * 4
    assert world.controller.ledger.requeued == 4


def test_drop_cancels_a_straggler_and_mask_keeps_it() -> None:
    for on_stale, stale in (("drop", 1), ("mask", 0)):
        world = plain(on_stale=on_stale)
        for task in (1, 2):
            world.finish(task, 0, 0)
        world.step_done()
        world.weights_live()
        world.finish(3, 0, 0)
        world.finish(4, 1, 1)
        assert world.leased.keys() == {3, 4}
        assert world.counts["stale"] == stale
        assert world.running[0].number == stale


def test_mask_requeues_a_group_without_any_usable_token() -> None:
    world = plain(on_stale="mask")
    for task in (1, 2):
        world.finish(task, 0, 0)
    world.step_done()
    world.weights_live()
    world.finish(3, 0, 1)
    world.finish(4, 1, 1)
    world.step_done()
    world.weights_live()
    world.finish(0, 0, 0)
    assert world.counts["stale"] == 1
    assert world.running[0].number == 1


def test_a_second_report_of_a_group_that_is_kept_does_not_discard_it() -> None:
    controller = Controller(Settings(groups_per_step=1, max_staleness=0, max_steps=1, tokens_per_group=10))
    for event in (WeightsLive(0), GeneratorJoined("g0")):
        controller.handle(event)
    controller.decide()
    controller.handle(GroupFinished(0, 0, 0, 0, 10))
    controller.handle(GroupFinished(0, 0, 0, 0, 10))
    assert controller.decide() == [Train(0, ((0, 0),), 0)]
    controller.handle(GroupFinished(7, 0, 0, 0, 10))
    assert controller.decide() == [Discard(7, 0)]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (GeneratorJoined("g0"), "already serving"),
        (StepDone(0), "not being trained"),
        (PublishFailed(1), "not in flight"),
        (WeightsLive(1), "only 0 to 0 can be"),
        (GroupFinished(0, 0, 0, 1, 10), "only 0 to 0 exist"),
        (GroupFinished(0, 0, -1, -1, 10), "GroupFiltered"),
    ],
)
def test_an_event_that_cannot_happen_is_an_error(event, message: str) -> None:
    world = plain()
    with pytest.raises(ValueError, match=message):
        world.controller.handle(event)


def test_a_push_that_fails_after_a_generator_that_joined_made_its_version_live_is_no_news() -> None:
    controller = Controller(Settings(groups_per_step=1, max_staleness=1, max_steps=3, tokens_per_group=10))
    for event in (WeightsLive(0), GeneratorJoined("g0")):
        controller.handle(event)
    controller.decide()
    for event in (GroupFinished(0, 0, 0, 0, 10), GroupFinished(1, 0, 0, 0, 10)):
        controller.handle(event)
    controller.decide()
    controller.handle(StepDone(0))
    assert Publish(1) in controller.decide()
    for event in (WeightsLive(1), PublishFailed(1)):
        controller.handle(event)
    controller.handle(StepDone(1))
    assert Publish(2) in controller.decide()
    # That of version 1 has ended late, and the one of version 2 is in flight.
    controller.handle(PublishFailed(1))
    controller.handle(PublishFailed(2))
    assert controller.decide() == [Publish(2)]


def test_a_batch_closes_with_the_first_that_finish_and_the_rest_start_again_for_the_next() -> None:
    """S = 0 with two backup groups: nothing is started that would be too old for the next batch."""
    world = plain(max_staleness=0, on_stale="drop", backup_groups=2)
    assert list(world.running) == [0, 1, 2, 3]
    for task in (3, 1):
        world.finish(task, 0, 0)
    assert world.leased.keys() == {1, 3}
    assert not world.running
    assert list(world.waiting) == [0, 2]
    world.step_done()
    assert not world.running
    world.weights_live()
    assert list(world.running) == [0, 2, 4, 5]
    assert world.counts["stale"] == 2


def test_a_push_waits_until_the_lag_is_reached() -> None:
    world = plain(max_staleness=1, push_lag=2)
    for task in range(4):
        world.finish(task, 0, 0)
    world.step_done()
    assert world.publishing is None
    world.step_done()
    assert world.publishing == 2


def test_half_a_batch_may_be_one_update_older() -> None:
    """S = 0.5, P = 2: three slots, so one group of the next batch is generated while the trainer works."""
    world = plain(max_staleness=0.5)
    assert list(world.running) == [0, 1, 2]
    for task in range(3):
        world.finish(task, 0, 0)
    world.step_done()
    world.weights_live()
    assert list(world.running) == [3, 4]
    world.finish(3, 1, 1)
    assert world.leased.keys() == {2, 3}
    assert world.ages == [0, 1]
