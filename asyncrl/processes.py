"""Child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int | None = None) -> None:
    """Called in a child: the kernel kills it (SIGKILL) when its parent is gone, however the parent went.

    Linux ties this to the parent's *thread* that started the child: start it from a thread that lives as long
    as the child may. Children of the child are not covered. On other systems this only checks that the parent
    is still there. Exits at once if the parent has died already; `parent_pid`, where known, makes that sure.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() == 1 if parent_pid is None else os.getppid() != parent_pid:
        os._exit(1)
