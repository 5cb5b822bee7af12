"""A program that is started for a while, with its output in a file. Its keeper (`keeper.py`) ends it, and all that it
starts, with whoever started it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from asyncrl.processes.keeper import Code, below
from asyncrl.processes.kept import Kept

_NO_LIMIT_GIB = float(2**20)
_END_S, _LOOK_S = 15.0, 0.05


class Program:
    """Start it from a thread that lives as long as it may."""

    def __init__(self, what: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """`what` it is, for people; `environment`: what it has beside this process's own."""
        code = Code(what, __name__, _NO_LIMIT_GIB, "", _NO_LIMIT_GIB, str(log))
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._kept = Kept(code, theirs.fileno())
        self._ours.sendall(json.dumps([list(command), dict(environment)]).encode())
        self._ours.shutdown(socket.SHUT_WR)
        self._how = ""

    @property
    def ended(self) -> bool:
        """With all that it had started."""
        return self._kept.ended

    def end(self) -> tuple[int | None, str]:
        """Ends it, if it has not ended: by SIGTERM, and what is left of it after 15 s by SIGKILL. Its exit code if it
        had one, and how it ended, in words."""
        try:
            self._ask_to_end()
        finally:
            self._how = self._how or self._kept.kill()
            self._ours.close()
        code = re.search(r"exit code (\d+)", self._how)
        return (int(code[1]) if code else None), self._how

    def _ask_to_end(self) -> None:
        """Its own way to end leaves nothing behind, in shared memory, say."""
        with contextlib.suppress(OSError, ValueError):  # it has not been started yet, or is gone
            self._ours.setblocking(False)
            pid, deadline = int(self._ours.recv(32)), time.monotonic() + _END_S
            if not self.ended and pid in below(self._kept.pid):
                os.kill(pid, signal.SIGTERM)
            while not self.ended and time.monotonic() < deadline:
                time.sleep(_LOOK_S)


def main(handle: int, _: int) -> None:
    """In the process that becomes the program."""
    with socket.socket(fileno=handle) as theirs:
        said = b""
        while some := theirs.recv(2**16):
            said += some
        command, environment = json.loads(said)
        theirs.sendall(str(os.getpid()).encode())
    os.execvpe(command[0], command, {**os.environ, **environment})
