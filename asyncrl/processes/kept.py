"""A process of a user's code, seen from the one that started it: its keeper (`keeper.py`) sees to its family's end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe

import psutil

from asyncrl.processes.keeper import Code, below

logger = logging.getLogger(__name__)

_KILL_S = 10.0
_OF_AN_ENGINE = ("GOMP_CPU_AFFINITY", "VLLM_CPU_OMP_THREADS_BIND")
"""Set in a generator for its engine; a user's torch would bind itself to the engine's cores."""


class Kept:
    """Start it from a thread that lives as long as it may: the kernel ends it with that thread."""

    def __init__(self, code: Code, handle: int) -> None:
        """It serves the socket `handle`, which the caller closes here."""
        self._what, self._kill_s = code.what, code.grace_s + _KILL_S
        # Not multiprocessing: its spawn would run the parent's __main__ again, whatever that is. Exec drops the
        # parent's signal handlers; a session of its own keeps Ctrl-C away.
        self._said, says = Pipe(duplex=False)
        program = (
            f"import sys; sys.path[:] = {[p or os.getcwd() for p in sys.path]!r}; "
            f"from asyncrl.processes.keeper import Code, main; "
            f"main({handle}, {says.fileno()}, {os.getpid()}, {code!r})"
        )
        with says:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if name not in _OF_AN_ENGINE},
                pass_fds=[handle, says.fileno()],
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself, with all that it had started."""
        return self._said.closed or self._said.poll()

    def kill(self) -> str:
        """Ends it and all that it has started; says how it ended. Waits for twenty seconds at most, and its grace."""
        family = below(self._process.pid)
        self._process.terminate()
        # The user's code may have stopped those that end it.
        for pid in (self._process.pid, *family):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        try:
            code = self._process.wait(self._kill_s)
        except subprocess.TimeoutExpired:
            self._end_all()
            logger.warning(
                "%s process %d does not end what it started within %g s", self._what, self._process.pid, self._kill_s
            )
            return f"the {self._what} process does not end"
        with self._said:
            said = os.read(self._said.fileno(), 1000).decode() if self._said.poll(_KILL_S) else ""
            return said or f"the {self._what}'s keeper died ({code})"

    def _end_all(self) -> None:
        """Without the help of those that see to it: something stops them again and again."""
        deadline = time.monotonic() + _KILL_S
        # Who is stopped does not reap: its dead children stay.
        while (alive := [*filter(_lives, below(self._process.pid))]) and time.monotonic() < deadline:
            for pid in alive:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        self._process.kill()


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
