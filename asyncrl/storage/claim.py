"""One start for each run directory, before there is a directory that could be locked (`processes/lock.py`).

A claim is a name in the kernel, an abstract Unix socket: nothing is written, and it is free however its holder ends. It
is known on this machine alone; of two machines, the second finds the directory made.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from asyncrl.errors import UserError

_CREDENTIALS = struct.Struct("3i")
"""Of SO_PEERCRED: process, user, group."""
_DEADLINE_S = 5.0


@contextmanager
def claimed(run_dir: str) -> Iterator[None]:
    """Holds the claim in the block. Raises UserError if another process of this user has it."""
    # Containers of one network may each have a /tmp of their own: another mount namespace, other paths.
    whole = run_dir if "://" in run_dir else f"{os.readlink('/proc/self/ns/mnt')} {os.path.realpath(run_dir)}"
    name = f"\0asyncrl.{os.geteuid()}.{hashlib.sha256(os.fsencode(whole)).hexdigest()}"
    with socket.socket(socket.AF_UNIX) as claim:
        try:
            claim.bind(name)
            claim.listen()
        except OSError:
            if (holder := _holder(name)) is not None:
                raise UserError(
                    f"process {holder} works on {run_dir} already; wait for it, or stop it with `kill {holder}`"
                ) from None
        yield


def _holder(name: str) -> int | None:
    """Its process; None if it has ended (what it started may live on), is another user's, or this very process."""
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_DEADLINE_S)
            asking.connect(name)
            found = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, user, _ = _CREDENTIALS.unpack(found)
        os.kill(pid, 0)
    except OSError:
        return None
    return pid if user == os.geteuid() and pid not in (0, os.getpid()) else None
