"""The bound is reached, and each of its two sides is needed."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncrl.control import staleness
from asyncrl.control.controller import Controller
from asyncrl.control.messages import (
    GeneratorJoined,
    GroupFinished,
    Publish,
    Start,
    StepDone,
    Train,
    WeightsLive,
)
from asyncrl.control.settings import Settings


def one_straggler(settings: Settings, straggler: int) -> tuple[int, Controller]:
    """All groups finish at once but `straggler`, which does when nothing else is left to happen.

    Returns the age of its tokens, all of version 0, when it is trained, or -1 if it is not.
    """
    controller = Controller(settings)
    events = [WeightsLive(0), GeneratorJoined("g0")]
    waiting, live = True, 0
    while events or waiting:
        if not events:
            waiting = False
            events = [GroupFinished(straggler, 0, 0, 0, 10)]
        event = events.pop(0)
        controller.handle(event)
        live = event.version if isinstance(event, WeightsLive) else live
        for decision in controller.decide():
            match decision:
                case Start(task, attempt, _) if task != straggler:
                    events.append(GroupFinished(task, attempt, live, live, 10))
                case Train(step, groups, _):
                    if (straggler, 0) in groups:
                        return step, controller
                    events.append(StepDone(step))
                case Publish(version):
                    events.append(WeightsLive(version))
    return -1, controller


def settings_of(P: int, S: int, W: int) -> Settings:
    return Settings(groups_per_step=P, max_staleness=S, selection_window=W, max_steps=S + W + 3, tokens_per_group=10)


@given(st.integers(1, 4), st.integers(0, 4), st.integers(1, 9))
def test_the_worst_case_is_reached(P: int, S: int, W: int) -> None:
    settings = settings_of(P, S, W)
    age, _ = one_straggler(settings, straggler=(S + 1) * P - 1)
    assert age == staleness.worst_case(settings)


def fraction_of(P: int, hundredths: int) -> Settings:
    return Settings(groups_per_step=P, max_staleness=hundredths / 100, max_steps=9, tokens_per_group=10)


@given(st.integers(1, 30), st.integers(1, 375))
def test_the_worst_case_of_a_fraction_is_reached(P: int, hundredths: int) -> None:
    """ceil(S), if the fraction is worth a slot."""
    settings = fraction_of(P, hundredths)
    age, _ = one_straggler(settings, straggler=staleness.slots(settings) - 1)
    assert age == staleness.worst_case(settings)
    assert age == hundredths // 100 + (hundredths % 100 * P >= 100)


@given(st.integers(1, 200), st.integers(0, 500))
@example(100, 16)
def test_slots_are_those_of_the_number_as_written(P: int, hundredths: int) -> None:
    assert staleness.slots(fraction_of(P, hundredths)) == (hundredths + 100) * P // 100


@pytest.mark.parametrize(
    ("P", "S", "W", "expected"), [(4, 2, 1, 2), (4, 2, 2, 3), (4, 2, 5, 3), (4, 2, 6, 4), (1, 1, 6, 6), (4, 0, 6, 0)]
)
def test_worst_case_values(P: int, S: int, W: int, expected: int) -> None:
    assert staleness.worst_case(settings_of(P, S, W)) == expected


@pytest.mark.parametrize(("P", "S", "W"), [(1, 0, 1), (2, 1, 1), (3, 2, 1), (2, 2, 5), (1, 1, 3)])
def test_one_slot_too_many_is_caught_by_the_version_check(P: int, S: int, W: int, monkeypatch) -> None:
    settings = settings_of(P, S, W)
    bound = staleness.worst_case(settings)
    slots = staleness.slots(settings) + 1
    # Elsewhere the bound's rounding has room for one more.
    assert (W - 1) % P == 0
    monkeypatch.setattr(staleness, "slots", lambda _: slots)
    age, controller = one_straggler(settings, straggler=slots - 1)
    assert age == -1
    assert controller.ledger.stale > 0
    # And without the check the bound is broken: admission alone was keeping it.
    monkeypatch.setattr(staleness, "usable", lambda *_: True)
    age, controller = one_straggler(settings, straggler=slots - 1)
    assert age == bound + 1
    assert controller.ledger.stale == 0


def test_the_window_counts_from_the_oldest_running_group() -> None:
    settings = settings_of(1, 1, 3)
    assert staleness.selectable_below(5, settings) == 8
    assert staleness.selectable_below(None, settings) is None


def test_the_window_lets_groups_overtake() -> None:
    for W, trained_first in ((1, -1), (2, 0)):
        controller = Controller(settings_of(1, 1, W))
        for event in (WeightsLive(0), GeneratorJoined("g0")):
            controller.handle(event)
        controller.decide()
        controller.handle(GroupFinished(1, 0, 0, 0, 10))
        steps = [d.step for d in controller.decide() if isinstance(d, Train)]
        assert steps == [0][: trained_first + 1]
