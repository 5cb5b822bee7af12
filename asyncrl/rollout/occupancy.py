"""Where a generator's time goes: busy, paused or idle, never two at once and never none."""

from __future__ import annotations

import time
from collections.abc import Callable

from asyncrl.observe import trace

STATES = ("busy", "paused", "idle")


class Occupancy:
    """A clock that always runs for exactly one state, so that the shares of any window sum to 1."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since = clock()
        self._seconds = dict.fromkeys(STATES, 0.0)
        self._running = 0
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
        self._since = now

    def add_running(self, change: int) -> None:
        """A group started (+1) or ended (-1)."""
        self._change(self._running + change, self._paused)

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
        """Seconds in each state since the last call."""
        self._account()
        seconds, self._seconds = self._seconds, dict.fromkeys(STATES, 0.0)
        return seconds
