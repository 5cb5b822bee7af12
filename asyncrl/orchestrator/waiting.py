"""The waiting-for registry (I4): who waits for whom, for what, since when; nothing waits without a deadline."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from asyncrl.errors import DeadlineExceeded
from asyncrl.storage.run_dir import replace

logger = logging.getLogger(__name__)
T = TypeVar("T")

_OVERDUE_S = 5.0
_NUM_OTHERS = 3
_USUAL_TIMES = 3.0
"""A wait is long if it lasts so many times the median of those before it."""
_NUM_BEFORE = 64


@dataclass(eq=False)
class Wait:
    """One wait that is in flight."""

    whom: str
    what: str
    since: float
    deadline_s: float

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.since

    @cached_property
    def kind(self) -> tuple[str, str]:
        """Whom and what, whatever its number: the tasks of one generator."""
        return self.whom, re.sub(r"\d+", "", self.what)

    def told(self, more: int = 0) -> str:
        """As a sentence; `more` of its kind are younger."""
        also = f" and {more} more" if more else ""
        return " ".join(f"{self.whom}: {self.what}{also}, for {self.age_s:.0f} s of {self.deadline_s:.0f} s".split())


class WaitingFor:
    """All waits of one process.

    `warn_s`: age at which a wait is logged, and again at each doubling; later if waits of its kind usually take long
    here (3 times their median). Of one kind the oldest speaks for all. `on_overdue` is called with whom was waited
    for when a wait reaches that age, and again at its deadline, just before the error, which it holds up for 5 s at
    most; what it raises is logged.
    """

    def __init__(self, warn_s: float, on_overdue: Callable[[str], Awaitable[None] | None] | None = None) -> None:
        self._warn_s = warn_s
        self._on_overdue = on_overdue
        self._waits: dict[Wait, None] = {}
        self._alike: dict[tuple[str, str], dict[Wait, None]] = {}
        """In the order of their begin; thousands of groups may be waited for."""
        self._calls: set[asyncio.Task[None]] = set()
        self._before: dict[str, deque[float]] = {}
        """How long the last waits took, by what was waited for."""

    async def __call__(
        self, awaitable: Awaitable[T], whom: str, what: str, deadline_s: float, *, part: bool = False
    ) -> T:
        """Await with a deadline. `part`: of another wait, which is logged for all its parts. Raises DeadlineExceeded
        naming whom was waited for, for what, and the other waits."""
        wait = Wait(whom, what, time.monotonic(), deadline_s)
        self._waits[wait] = None
        alike = self._alike.setdefault(wait.kind, {})
        alike[wait] = None
        task = asyncio.ensure_future(awaitable)
        next_warning_s = first_warning_s = self._long_s(wait)
        try:
            while not task.done():
                left_s = wait.since + deadline_s - time.monotonic()
                if left_s <= 0:
                    error = DeadlineExceeded(f"waited {deadline_s:.0f} s for {whom}: {what}{self._others(wait)}")
                    if call := self._overdue(whom):
                        await asyncio.wait({call}, timeout=_OVERDUE_S)
                    raise error
                await asyncio.wait({task}, timeout=min(left_s, wait.since + next_warning_s - time.monotonic()))
                if not task.done() and wait.age_s >= next_warning_s:
                    if next(iter(alike)) is wait:
                        if not part:
                            logger.warning("still waiting for %s", wait.told(len(alike) - 1))
                        if next_warning_s == first_warning_s:
                            self._overdue(whom)
                    next_warning_s *= 2
            self._before.setdefault(wait.kind[1], deque(maxlen=_NUM_BEFORE)).append(wait.age_s)
            return task.result()
        finally:
            task.cancel()
            del self._waits[wait], alike[wait]
            if not alike:
                self._alike.pop(wait.kind, None)

    def oldest(self, count: int) -> list[str]:
        """The longest waits, as sentences, one for each kind."""
        oldest = sorted(
            ((next(iter(alike)), len(alike)) for alike in self._alike.values()), key=lambda one: one[0].since
        )
        return [wait.told(number - 1) for wait, number in oldest[:count]]

    def dump(self, path: Path) -> str:
        """Writes all waits to a file, replaced as a whole: oldest first, one a line; returns the text."""
        text = "".join(f"{wait.told()}\n" for wait in self._waits)
        replace(path, text)
        return text

    def _long_s(self, wait: Wait) -> float:
        before = self._before.get(wait.kind[1])
        return max(self._warn_s, _USUAL_TIMES * statistics.median(before)) if before else self._warn_s

    def _others(self, wait: Wait) -> str:
        """The longest of the other waits that are past the warning age, for the end of a sentence."""
        others = [w for w in self._waits if w is not wait and w.age_s > self._warn_s]
        listed = ", ".join(f"{w.whom} ({w.what}, {w.age_s:.0f} s)" for w in others[:_NUM_OTHERS])
        return f"; meanwhile waiting for {listed}" if others else ""

    def _overdue(self, whom: str) -> asyncio.Task[None] | None:
        """Starts the callback beside the wait."""
        if self._on_overdue is None:
            return None
        call = asyncio.ensure_future(self._call_overdue(self._on_overdue, whom))
        # The event loop holds tasks weakly.
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    async def _call_overdue(self, on_overdue: Callable[[str], Awaitable[None] | None], whom: str) -> None:
        try:
            result = on_overdue(whom)
            if inspect.isawaitable(result):
                await asyncio.wait_for(result, _OVERDUE_S)
        except Exception as error:
            logger.warning("looking into %s, which is overdue, failed: %s: %s", whom, type(error).__name__, error)
