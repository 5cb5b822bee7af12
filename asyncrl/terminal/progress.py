"""Signs of life: what is being done, how much of it, since when. A bar on a terminal, else a line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from asyncrl.terminal.console import VisibleConsole

_FIRST_S = 5.0
_FIRST_ALONE_S = 2.0
"""Where no line has said what is begun."""
_LOOK_S = 1.0


class Phase:
    """What is done now. `total`: how much there is to do, in whatever it is counted in; 0: nobody knows."""

    def __init__(self, text: str, since_s: float, total: int = 0, first_s: float = _FIRST_S) -> None:
        self.text, self.since_s, self.total = text, since_s, total
        self.done = 0
        self._next_s = first_s

    def due(self, now_s: float) -> bool:
        """Whether a log should have another line of it: after 5 s, and after each doubling."""
        age_s = now_s - self.since_s
        if age_s < self._next_s:
            return False
        while self._next_s <= age_s:
            self._next_s *= 2
        return True

    @property
    def name(self) -> str:
        return f"{self.text}, {self.done} of {self.total}" if self.total else self.text

    def words(self, now_s: float) -> str:
        return f"{self.name}, {duration(now_s - self.since_s)}"


class Heartbeat:
    """Calls `beat` every second, in a thread of its own, until `stop`."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat, self._stopped = beat, threading.Event()
        self._thread = threading.Thread(target=self._run, name="signs of life", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK_S):
            self._beat()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


@contextmanager
def shown(text: str, total: int = 0, console: rich.console.Console | None = None) -> Iterator[Callable[[int], None]]:
    """Show on stderr how far the block is; it calls what it gets with how much of `total` is done, if that is known."""
    console = console or VisibleConsole(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        amount = (MofNCompleteColumn(),) if total else ()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), *amount, TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(text, total=total or None)
            yield lambda done: bar.update(task, completed=done)
        return
    phase = Phase(text, time.monotonic(), total, first_s=_FIRST_ALONE_S)

    def beat() -> None:
        if phase.due(now_s := time.monotonic()):
            console.print(phase.words(now_s), markup=False, highlight=False, soft_wrap=True)

    def advance(done: int) -> None:
        phase.done = done

    heart = Heartbeat(beat)
    try:
        yield advance
    finally:
        heart.stop()


def duration(seconds: float) -> str:
    """As people say it: 7 s, 3 min 05 s, 2 h 04 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
