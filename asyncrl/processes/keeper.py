"""Keeps the family of a process that runs a user's code (a reward, an environment): all that it starts, daemons too,
ends together, and stays within limits.

    Kept --start, SIGTERM--> guard --fork, SIGTERM--> keeper --fork--> worker --> whatever the user's code starts
Who loses its parent in there becomes a child of the keeper, so that nobody gets away. It looks every `_LOOK_S` at what
they hold together, and passes on what they print up to a limit. When the worker ends, however it does, so do they. If
the user's code ends the keeper, the guard inherits them and does the same; if it ends the guard, the keeper is told to.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import resource
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from asyncrl.processes.children import adopt_orphans, die_with_parent
from asyncrl.storage.run_dir import alike

_LOOK_S = 0.1
_END_S = 5.0
_GIB = 2**30
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM}


@dataclass(frozen=True)
class Code:
    """Whose process it is, and its limits."""

    what: str
    """`reward` or `environment`, for people."""
    module: str
    """Its `main(handle, parent_pid)` serves the socket."""
    memory_gib: float
    """That all of them may hold together."""
    memory_key: str
    """Of the recipe."""
    file_gib: float
    """That a file of theirs may have."""
    log: str = ""
    """File that takes what they print; empty: where this process prints."""
    grace_s: float = 0.0
    """In which it may end by itself when it is told to, and what it has started after it; then all are killed."""
    most_printed: int = 64 * 2**20
    """Bytes that are passed on."""
    cores: tuple[int, ...] = field(default_factory=lambda: tuple(os.sched_getaffinity(0)))
    """That they may run on: those of who says so first, before an engine binds itself to some of them."""


def main(handle: int, said: int, parent_pid: int, code: Code) -> None:
    """Starts the worker that serves the socket `handle`; writes to the pipe `said` how it ended. SIGTERM ends all."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    with contextlib.suppress(OSError):  # they may have been taken away since
        os.sched_setaffinity(0, code.cores)
    die_with_parent(parent_pid, signal.SIGTERM)
    adopt_orphans()
    guard = os.getpid()
    if keeper := os.fork():
        os.close(handle)
        return _guard(keeper, said, code)
    die_with_parent(guard, signal.SIGTERM)
    adopt_orphans()
    printed, prints = os.pipe()
    keeper = os.getpid()
    if (worker := os.fork()) == 0:
        for file in (said, printed):
            os.close(file)
        _become_worker(prints, int(code.file_gib * _GIB))
        importlib.import_module(code.module).main(handle, keeper)
        return None
    for file in (handle, prints):
        os.close(file)
    passing = threading.Thread(target=_pass_on, args=(printed, code), daemon=True)
    passing.start()
    os.write(said, _keep(worker, code).encode())
    passing.join(1.0)
    return None


def _guard(keeper: int, said: int, code: Code) -> None:
    """Waits for the end of the keeper, which is told of SIGTERM; then ends whom it leaves behind."""
    status, ends = None, math.inf
    while status is None and time.monotonic() < ends:
        got = signal.sigtimedwait(_SIGNALS, 1.0)
        status = _reap(keeper)
        if status is None and got and got.si_signo == signal.SIGTERM:
            for number in (signal.SIGTERM, signal.SIGCONT):  # the user's code may have stopped it
                os.kill(keeper, number)
            ends = time.monotonic() + code.grace_s + _END_S + 1.0
    if status != 0:
        how = signal.Signals(-status).name if status is not None and status < 0 else status
        os.write(said, f"the {code.what}'s keeper died ({how})".encode())
    _end_all()


def _become_worker(prints: int, most_bytes: int) -> None:
    """A session of its own keeps Ctrl-C away."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(prints, stream)
    os.close(prints)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _keep(worker: int, code: Code) -> str:
    """Waits for: the end of the worker, or of the pool's patience. Returns how the worker ended, when all have."""
    reason, status, most = "", None, code.memory_gib * _GIB
    while status is None and not reason:
        got = signal.sigtimedwait(_SIGNALS, _LOOK_S)
        status = _reap(worker)
        if status is None and got and got.si_signo == signal.SIGTERM:
            break
        held = _resident(below(os.getpid()), most)
        if status is None and held > most:
            reason = (
                f"the {code.what} and what it started held {held / _GIB:.3g} GiB of memory, and {code.memory_key} is "
                f"{code.memory_gib:.3g}; raise it, or use less"
            )
    if code.grace_s and not reason:
        status = _let_end(worker, status, code.grace_s)
    ended = _end_all(worker)
    return reason or _in_words(ended if status is None else status, code.what)


def _let_end(worker: int, status: int | None, grace_s: float) -> int | None:
    """Tells the worker to end, if it has not, and waits for it and all that it has started; as `_reap`."""
    if status is None:
        os.kill(worker, signal.SIGTERM)
    ends = time.monotonic() + grace_s
    while below(os.getpid()) and time.monotonic() < ends:
        signal.sigtimedwait({signal.SIGCHLD}, _LOOK_S)
        ended = _reap(worker)
        status = ended if status is None else status
    return status


def _end_all(worker: int = -1) -> int | None:
    """Ends all descendants, in a few seconds at most; as `_reap`."""
    status, ends = None, time.monotonic() + _END_S
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < ends:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.002)
        ended = _reap(worker)
        status = ended if status is None else status
    return status


def _reap(worker: int) -> int | None:
    """Take note of all who have ended; the worker's exit code (negative: the signal) if it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == worker:
                found = os.waitstatus_to_exitcode(ended[1])
    return found


def _in_words(status: int | None, what: str) -> str:
    if status == -signal.SIGKILL:
        return f"the {what} process was killed (SIGKILL; out of memory?)"
    how = "unkillable" if status is None else signal.Signals(-status).name if status < 0 else f"exit code {status}"
    return f"the {what} process died ({how})"


def below(pid: int) -> list[int]:
    """All descendants that the kernel names, for the price of a few small files."""
    found, todo = [], [pid]
    while todo:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{(parent := todo.pop())}/task"):
                children = [*map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())]
                found += children
                todo += children
    return found


def _resident(pids: Iterable[int], enough: float) -> float:
    """Bytes of memory that they hold; what they share counts once, where that matters."""
    total = sum(_of(pid, "rss") for pid in pids)
    return total if total <= enough else sum(_of(pid, "pss") for pid in pids)


def _of(pid: int, what: str) -> int:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return getattr(process.memory_info() if what == "rss" else process.memory_full_info(), what)
    return 0


def _pass_on(printed: int, code: Code) -> None:
    """What the family prints, up to a limit. Ends when nobody can print any more."""
    left, told, file = code.most_printed, False, -1
    while some := os.read(printed, 2**16):
        if file < 0:
            file = _opened(code.log)
            left -= os.fstat(file).st_size if code.log else 0
        kept = some[: max(0, left)]
        left -= len(kept)
        if len(kept) < len(some) and not told:
            told = True
            kept += f"\n[the {code.what} has printed {code.most_printed // 2**20} MiB; the rest is left out]\n".encode()
        with contextlib.suppress(OSError):
            while kept:
                kept = kept[os.write(file, kept) :]


def _opened(log: str) -> int:
    with contextlib.suppress(OSError):
        if log:
            with alike(Path(log).parent):
                return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    return 1
