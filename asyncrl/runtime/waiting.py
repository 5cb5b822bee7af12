"""The waiting-for registry (I4): who waits for whom, for what, since when; nothing waits without a deadline."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from asyncrl.errors import DeadlineExceeded

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(eq=False)
class Wait:
    """One wait that is under way."""

    whom: str
    what: str
    since: float
    deadline_s: float

    def __str__(self) -> str:
        return f"{self.whom}: {self.what}, for {time.monotonic() - self.since:.0f} s of {self.deadline_s:.0f} s"


class WaitingFor:
    """All waits of one process. `warn_s`: age at which a wait is logged, and again at each doubling."""

    def __init__(self, warn_s: float) -> None:
        self._warn_s = warn_s
        self._waits: set[Wait] = set()

    async def __call__(self, awaitable: Awaitable[T], whom: str, what: str, deadline_s: float) -> T:
        """Await with a deadline. Raises DeadlineExceeded naming whom was waited for, and for what."""
        wait = Wait(whom, what, time.monotonic(), deadline_s)
        self._waits.add(wait)
        task = asyncio.ensure_future(awaitable)
        next_warning_s = self._warn_s
        try:
            while not task.done():
                left_s = wait.since + deadline_s - time.monotonic()
                if left_s <= 0:
                    raise DeadlineExceeded(f"waited {deadline_s:.0f} s for {whom}: {what}")
                await asyncio.wait({task}, timeout=min(left_s, wait.since + next_warning_s - time.monotonic()))
                if not task.done() and time.monotonic() - wait.since >= next_warning_s:
                    logger.warning("still waiting for %s", str(wait))
                    next_warning_s *= 2
            return task.result()
        finally:
            task.cancel()
            self._waits.discard(wait)

    def oldest(self, count: int) -> list[str]:
        """The longest waits, as sentences."""
        return [str(w) for w in sorted(self._waits, key=lambda w: w.since)[:count]]
