"""Passes of an update on two threads: the trainer's own, and one on the cores of an engine that has nothing to do.

A trainer and an engine that work side by side have half of the cores each, and one of them is done first. When it is
the engine, its cores pass micro-batches: both threads take the next one that nobody has, and the results come in their
order, so a sum of them is the same bit for bit whoever made which.

Waits for: the oldest result that the other thread still makes. Unblocked by: that thread, at the latest when the
engine leaves it a share of its cores.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import psutil

from asyncrl.observe import trace

Item = TypeVar("Item")
Result = TypeVar("Result")

PASSES = 6
"""Micro-batches of an update, at least: fewer end unevenly; of SmolLM2-135M, six take 6 % longer than one."""
SECOND = "second lane"
_AHEAD = 2
"""Results that may wait for an older one: each holds a gradient of all weights."""
_MOST_OF_MEMORY = 1 / 8
"""Share of the machine's memory that such gradients may take."""


def fit(gradient_bytes: int) -> bool:
    """Whether there is room for the gradients that two threads hold beside the one that is added up."""
    return gradient_bytes * (_AHEAD + 1) <= psutil.virtual_memory().total * _MOST_OF_MEMORY


class Lanes:
    """`second`: whether there is a second thread. It works only in updates in which `open` is true."""

    def __init__(self, second: bool, deadline_s: float) -> None:
        self.open = False
        self._second = ThreadPoolExecutor(1, SECOND) if second else None
        self._deadline_s = deadline_s

    def shares(self, number: int) -> bool:
        """Whether `number` passes are divided between two threads; then a pass must leave nothing behind."""
        return self._second is not None and self.open and number > 2

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """The results in the order of the items. Raises what a pass raised, or TimeoutError past the deadline."""
        if self._second is None or not self.shares(len(items)):
            yield from map(work, items)
            return
        todo = deque(range(len(items)))
        made: list[Future[Result]] = [Future() for _ in items]

        def make(place: int) -> None:
            try:
                made[place].set_result(work(items[place]))
            except BaseException as error:
                made[place].set_exception(error)

        def help_out() -> None:
            # The last is left to the first thread: alone on its cores it is sooner done.
            while len(todo) > 1 and (place := _next(todo)) is not None:
                make(place)

        helping = self._second.submit(help_out)
        try:
            for oldest, result in enumerate(made):
                while not result.done() and todo and todo[0] <= oldest + _AHEAD and (place := _next(todo)) is not None:
                    make(place)
                yield result.result(self._deadline_s)
                made[oldest] = Future()  # it holds a gradient
        finally:
            todo.clear()
            helping.result(self._deadline_s)


def lane() -> str:
    """Of this thread, for the trace."""
    return SECOND if threading.current_thread().name.startswith(SECOND) else trace.MAIN


def _next(todo: deque[int]) -> int | None:
    """None if the other thread was faster."""
    try:
        return todo.popleft()
    except IndexError:
        return None
