"""Ends that are asked for. SIGTERM and Ctrl-C in an asyncio program: the first asks for a graceful end, the second for
an end at once."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Finish the current step, save, end. `why`: in words; `failed`: the run counts as failed."""

    def __init__(self, why: str, *, failed: bool = False) -> None:
        self.why, self.failed = why, failed


@contextmanager
def stop_in_time(hours: float | None, ask: Callable[[Stop], None]) -> Iterator[None]:
    """Ask for an end when the block has run for so many hours (None: never). In an event loop."""

    def over() -> None:
        logger.warning("max_hours %g are over: the run stops after this step", hours)
        ask(Stop(f"stopped by max_hours {hours:g}"))

    timer = asyncio.get_running_loop().call_later(hours * 3600, over) if hours is not None else None
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


class StopSignals:
    """Context manager; call it in the main thread. `on_first` gets the signal's name; from the third on, nothing.

    Both are called by the event loop: a loop that is stuck in one of its steps calls neither. The handlers from
    before are back afterwards.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_first: Callable[[str], None], on_second: Callable[[], None]
    ) -> None:
        self._loop, self._on_first, self._on_second = loop, on_first, on_second
        self._count = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in _SIGNALS:
            self._before[number] = signal.getsignal(number)
            self._loop.add_signal_handler(number, self._received, number.name)
        return self

    def __exit__(self, *_: object) -> None:
        for number in _SIGNALS:
            self._loop.remove_signal_handler(number)
            # None: a handler in C, which cannot be set again from here.
            if self._before[number] is not None:
                signal.signal(number, self._before[number])

    def _received(self, name: str) -> None:
        self._count += 1
        if self._count == 1:
            self._on_first(name)
        elif self._count == 2:
            self._on_second()
