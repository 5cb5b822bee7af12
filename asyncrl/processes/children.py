"""Child processes that do not outlive their parent, nor go on with its work."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent_pid: int | None = None, by: signal.Signals = signal.SIGKILL) -> None:
    """Called in a child: the kernel sends it `by` when its parent is gone, however the parent went.

    Linux ties this to the parent's *thread* that started the child: start it from a thread that lives as long
    as the child may. Children of the child are not covered. On other systems this only checks that the parent
    is still there. Exits at once if the parent has died already; `parent_pid`, where known, makes that sure.
    """
    _prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() == 1 if parent_pid is None else os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Descendants of this process whose parent is gone become its children, not those of process 1. Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Only the process that enters the block leaves it. A child that was forked in it ends where it would: with 0, or
    the code that Python has for what it raised."""
    owner, code = os.getpid(), 0
    try:
        yield
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except BaseException:
        code = 1
        raise
    finally:
        if os.getpid() != owner:
            os._exit(code & 0xFF)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
