"""Running a coroutine to its end for a caller who may have an event loop of their own, as a notebook's cell has."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`; where a loop runs already, that waits, and the coroutine has a loop in a thread of its own.

    An interrupt there (a notebook's stop button) cancels the coroutine, and is raised when that has cleaned up.
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
            return ended.result()
        except KeyboardInterrupt:
            for loop, task in begun:
                if task is not None:
                    loop.call_soon_threadsafe(task.cancel)
            raise
