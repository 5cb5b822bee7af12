"""A program that is started for a while, with its output in a file. Its keeper (`keeper.py`) ends it, and all that it
starts, with whoever started it."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from asyncrl.processes.keeper import Code
from asyncrl.processes.kept import Kept

_NO_LIMIT_GIB = float(2**20)
_GRACE_S = 15.0
"""Who is killed at once leaves what it has in shared memory."""


class Program:
    """Start it from a thread that lives as long as it may."""

    def __init__(self, what: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """`what` it is, for people; `environment`: what it has beside this process's own."""
        code = Code(what, __name__, _NO_LIMIT_GIB, "", _NO_LIMIT_GIB, str(log), grace_s=_GRACE_S, most_printed=2**50)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._kept = Kept(code, theirs.fileno())
            ours.sendall(json.dumps([list(command), dict(environment)]).encode())
        self._how = ""

    @property
    def ended(self) -> bool:
        """With all that it had started."""
        return self._kept.ended

    def end(self) -> tuple[int | None, str]:
        """Ends it, if it has not ended: by SIGTERM, and what is left after 15 s by SIGKILL. Its exit code if it had
        one, and how it ended, in words."""
        self._how = self._how or self._kept.kill()
        code = re.search(r"exit code (\d+)", self._how)
        return (int(code[1]) if code else None), self._how


def main(handle: int, _: int) -> None:
    """In the process that becomes the program."""
    with socket.socket(fileno=handle) as theirs:
        said = b""
        while some := theirs.recv(2**16):
            said += some
    command, environment = json.loads(said)
    os.execvpe(command[0], command, {**os.environ, **environment})
