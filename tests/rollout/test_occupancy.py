"""A generator's time is busy, paused or idle, and the three add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.rollout.occupancy import REWARDS, STATES, Occupancy


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_goes_to_the_state_it_was_spent_in() -> None:
    clock = Clock()
    occupancy = Occupancy(clock)
    clock.now += 1
    occupancy.add_running(1)
    clock.now += 2
    occupancy.add_running(1)
    clock.now += 4
    occupancy.set_paused(True)
    clock.now += 8
    occupancy.add_running(-1)  # a group ends while paused: still paused
    clock.now += 16
    occupancy.set_paused(False)
    clock.now += 32
    occupancy.add_running(-1)
    clock.now += 64
    assert occupancy.take() == {"busy": 2 + 4 + 32, "paused": 8 + 16, "idle": 1 + 64, REWARDS: 0}


def test_rewards_are_waited_for_while_no_group_samples() -> None:
    clock = Clock()
    occupancy = Occupancy(clock)
    occupancy.add_running(2)
    with occupancy.scoring():
        clock.now += 1  # the other group samples
        with occupancy.scoring():
            clock.now += 2
            occupancy.set_paused(True)
            clock.now += 4
            occupancy.set_paused(False)
        clock.now += 8
    assert occupancy.take() == {"busy": 1 + 2 + 8, "paused": 4, "idle": 0, REWARDS: 2}


def test_take_starts_a_new_window_and_keeps_the_state() -> None:
    clock = Clock()
    occupancy = Occupancy(clock)
    occupancy.add_running(1)
    clock.now += 3
    assert occupancy.take()["busy"] == 3
    assert set(occupancy.take().values()) == {0}
    clock.now += 5
    assert occupancy.take() == {"busy": 5, "paused": 0, "idle": 0, REWARDS: 0}


EVENTS = st.one_of(st.just(1), st.just(-1), st.booleans(), st.just("take"))


@given(st.lists(st.tuples(st.integers(0, 1000), EVENTS)))
def test_every_second_belongs_to_exactly_one_state(events: list[tuple[int, object]]) -> None:
    clock = Clock()
    occupancy = Occupancy(clock)
    running, paused, window_from = 0, False, clock.now
    spent = dict.fromkeys(STATES, 0.0)
    for seconds, event in [*events, (0, "take")]:
        clock.now += seconds
        spent["paused" if paused else "busy" if running else "idle"] += seconds
        if event == "take":
            taken = occupancy.take()
            assert taken.pop(REWARDS) == 0
            assert taken == spent
            assert sum(taken.values()) == clock.now - window_from
            window_from, spent = clock.now, dict.fromkeys(STATES, 0.0)
        elif isinstance(event, bool):
            paused = event
            occupancy.set_paused(event)
        elif running + event >= 0:
            running += event
            occupancy.add_running(event)


@pytest.mark.parametrize(("running", "paused", "state"), [(0, False, "idle"), (2, False, "busy"), (2, True, "paused")])
def test_state(running: int, paused: bool, state: str) -> None:
    occupancy = Occupancy(Clock())
    occupancy.add_running(running)
    occupancy.set_paused(paused)
    assert occupancy.state == state
