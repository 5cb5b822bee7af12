"""The reward process: imports the function once, then scores requests until its parent hangs up."""

from __future__ import annotations

import os
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from asyncrl.errors import UserError
from asyncrl.plugins import one_line
from asyncrl.processes import die_with_parent
from asyncrl.rewards.load import load


def main(handle: int, parent_pid: int) -> None:
    """Serves the socket `handle`. Receives (spec, base_dir, dataset, kwargs, memory_gib), then RewardRequests.

    Answers the first with the function's `per_group`, or with a text if it cannot be loaded, and each request
    with its list of Scores, or with a text if it ran out of memory: then this process had better be replaced.
    """
    die_with_parent(parent_pid)
    os.set_inheritable(handle, False)
    connection = Connection(handle)
    spec, base_dir, dataset, kwargs, memory_gib = connection.recv()
    try:
        function = load(spec, Path(base_dir), dataset, kwargs)
        _ = function.ready
    except UserError as error:
        connection.send(str(error))
        return
    connection.send(function.per_group)
    if memory_gib is not None:
        # The imports' own share is not the function's: torch alone maps gigabytes that it never touches.
        _limit_memory(psutil.Process().memory_info().vms + int(memory_gib * 2**30))
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            answer: object = function.score(request)
        except MemoryError as error:
            # Lifted first: even the words about it need memory.
            _limit_memory(None)
            limit = "" if memory_gib is None else f" (the limit is {memory_gib:g} GiB)"
            answer = f"the reward ran out of memory{limit}: {one_line(error)}"
        connection.send(answer)


def _limit_memory(num_bytes: int | None) -> None:
    """Bounds the address space of this process; None lifts the bound, as far as the system's own one."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [b for b in (num_bytes, hard) if b is not None and b != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds, default=hard), hard))
