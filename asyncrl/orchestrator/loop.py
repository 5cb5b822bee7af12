"""Running a run to its end for a caller who may have an event loop of their own, as a notebook's cell has, and who
wants to hear of it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from asyncrl.observe.trackers import Tracker

T = TypeVar("T")


@dataclass
class Hooks:
    """What a program has to do with the run that it started. `trackers` are made with the run directory and a function
    that asks the run to stop, given why."""

    trackers: Mapping[str, Callable[[Path, Callable[[str], None]], Tracker]] = field(default_factory=dict)
    stop: Callable[[str], None] = lambda _: None
    """Asks the run to finish its step, save and end; from any thread."""


def complete(coroutine: Coroutine[Any, Any, T], hooks: Hooks | None = None) -> T:
    """As `asyncio.run`; where a loop runs already, that waits, and the coroutine has a loop in a thread of its own.

    An interrupt there (a notebook's stop button) asks the run to stop; the second one cancels the coroutine, and is
    raised when that has cleaned up.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    begun: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def run() -> T:
        begun.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await coroutine

    with ThreadPoolExecutor(1, "asyncrl") as executor:
        ended = executor.submit(asyncio.run, run())
        try:
            return _unless_interrupted(ended, hooks or Hooks())
        except KeyboardInterrupt:
            for loop, task in begun:
                if task is not None:
                    loop.call_soon_threadsafe(task.cancel)
            raise


def _unless_interrupted(ended: Future[T], hooks: Hooks) -> T:
    try:
        return ended.result()
    except KeyboardInterrupt:
        hooks.stop("interrupted")
        return ended.result()
