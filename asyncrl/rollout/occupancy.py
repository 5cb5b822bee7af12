"""Where a generator's time goes: busy, paused or idle, never two at once and never none; and how much of the busy time
is spent on rewards alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from asyncrl.observe import trace

STATES = ("busy", "paused", "idle")
REWARDS = "rewards"
"""The part of `busy` in which no group samples: all that run wait for their rewards."""


class Occupancy:
    """A clock that always runs for exactly one state, so that the shares of any window sum to 1."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since = clock()
        self._seconds = dict.fromkeys((*STATES, REWARDS), 0.0)
        self._running = self._scoring = 0
        self._paused = False
        self._state_since = trace.now()

    @property
    def state(self) -> str:
        if self._paused:
            return "paused"
        return "busy" if self._running else "idle"

    def _account(self) -> None:
        now = self._clock()
        self._seconds[self.state] += now - self._since
        if self.state == "busy" and self._scoring >= self._running:
            self._seconds[REWARDS] += now - self._since
        self._since = now

    def add_running(self, change: int) -> None:
        """A group started (+1) or ended (-1)."""
        self._change(self._running + change, self._paused)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """A group that runs waits for its rewards."""
        self._account()
        self._scoring += 1
        try:
            yield
        finally:
            self._account()
            self._scoring -= 1

    def set_paused(self, paused: bool) -> None:
        self._change(self._running, paused)

    def _change(self, running: int, paused: bool) -> None:
        self._account()
        before = self.state
        self._running, self._paused = running, paused
        if self.state != before:
            now = trace.now()
            trace.add(before, self._state_since, now, lane="engine")
            self._state_since = now

    def take(self) -> dict[str, float]:
        """Seconds in each state since the last call, and those of `REWARDS`."""
        self._account()
        seconds, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        return seconds
