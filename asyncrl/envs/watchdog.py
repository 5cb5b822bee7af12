"""Finds out who holds the event loop of an environment's process: a line of the user's that waits without `await`."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from asyncrl.plugins import is_the_users

_BEAT_S = 0.1
_HELD_S = 1.0
"""Of a loop that others are to share."""


class Watchdog:
    """A thread that looks at the loop's thread. One for each process."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """`warn` is called on the loop, when it goes on."""
        self._warn = warn
        self._beat = time.monotonic()
        self._held = ""
        """The line that held it."""
        self._loop_thread = threading.get_ident()

    async def watch(self) -> None:
        """Runs until it is cancelled."""
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()
        while True:
            late_s = time.monotonic() - self._beat
            if self._held and late_s > _HELD_S:
                self._warn(
                    f"the environment holds its event loop at {self._held}, and all other episodes of the process wait "
                    "meanwhile; await it, or make what blocks a plain function that asyncio.to_thread calls"
                )
            self._held, self._beat = "", time.monotonic()
            await asyncio.sleep(_BEAT_S)

    def _look(self) -> None:
        """The same line of the user's at two looks in a row: a loop that has no core to run on is not held."""
        before = ""
        while True:
            time.sleep(_HELD_S / 2)
            late = time.monotonic() - self._beat > _HELD_S / 2
            here = _line(sys._current_frames().get(self._loop_thread)) if late else ""
            if here and here == before:
                self._held = here
            before = here


def _line(frame: FrameType | None) -> str:
    """The innermost line of the user's code; empty while a module of his is imported, before any episode begins."""
    while frame is not None and frame.f_code.co_name != "<module>":
        if is_the_users(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
