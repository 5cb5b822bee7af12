"""Where a process stands: the stacks of all its threads, even if it is stuck in C with the interpreter's lock held.

    driver --SIGUSR2--> actor: faulthandler appends to RUN_DIR/stacks/<role>-<pid>.txt
SIGUSR2 is free, as of Ray 2.60 and vLLM 0.32 (searched in their sources): vLLM does not use it; of Ray's processes
only the dashboard agent does, which is none of ours (Tune takes SIGUSR1); torch does only if its stack traces on
fatal signals were switched on, which it does in its own tests.
Ray has no call that reaches a process which does not answer, so a task on its node sends the signal.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import faulthandler
import logging
import os
import signal
import time
from pathlib import Path

from ray.exceptions import RayError

from asyncrl.processes.nodes import call_on
from asyncrl.storage.run_dir import alike

logger = logging.getLogger(__name__)

_POLL_S = 0.05


def record(folder: Path, role: str) -> None:
    """In the process that may be asked: append its stacks to folder/<role>-<pid>.txt at every SIGUSR2.

    An empty file goes when the process ends in peace, when the role is recorded by its successor, or by `tidy`.
    A folder that cannot be written to is a warning: an actor must not fail for that.
    """
    path = folder / f"{role}-{os.getpid()}.txt"
    try:
        with alike(folder.parent):
            folder.mkdir(parents=True, exist_ok=True)
            for other in folder.glob(f"{role}-*.txt"):
                # `a-1.txt` is not of role a if it is of role a-1: only digits may follow.
                if other.stem.removeprefix(f"{role}-").isdecimal():
                    _remove_if_empty(other)
            file = path.open("ab", buffering=0)
    except OSError as error:
        logger.warning("%s: there will be no stacks of %s: %s", folder, role, error.strerror)
        return
    faulthandler.register(signal.SIGUSR2, file=file.fileno(), all_threads=True)

    def forget() -> None:
        faulthandler.unregister(signal.SIGUSR2)
        file.close()
        _remove_if_empty(path)

    atexit.register(forget)


def request(pid: int) -> bool:
    """Ask a process of this host for its stacks; False if it is gone, or does not record (it would die of it)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        caught = int(status["SigCgt"], 16) >> (signal.SIGUSR2 - 1) & 1
        if not caught or "zombie" in status["State"]:
            return False
        os.kill(pid, signal.SIGUSR2)
    except OSError:
        return False
    return True


async def collect(folder: Path, role: str, pid: int, node_id: str, deadline_s: float) -> Path | None:
    """Have a process of this run write its stacks; the file, or None if it did not within the deadline."""
    path = folder / f"{role}-{pid}.txt"
    until = time.monotonic() + deadline_s
    before = size = _size(path)
    try:
        if not await call_on(node_id, request, pid, deadline_s=deadline_s):
            return None
    except (RayError, TimeoutError) as error:
        logger.warning("the node of %s does not answer: %s", role, type(error).__name__)
        return None
    while time.monotonic() < until:
        await asyncio.sleep(_POLL_S)
        # The handler writes piece by piece: only what has stopped growing is whole.
        last, size = size, _size(path)
        if before < size == last:
            return path
    return path if size > before else None


def tidy(folder: Path) -> None:
    """At the end of a run, when its actors are gone: remove empty files, and the folder if nothing is left in it."""
    for path in folder.glob("*.txt"):
        _remove_if_empty(path)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.stat().st_size == 0:
            path.unlink()
