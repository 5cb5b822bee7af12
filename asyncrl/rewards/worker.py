"""The reward process: imports the function once, then scores requests until its parent hangs up."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path

from asyncrl.errors import UserError
from asyncrl.plugins import one_line
from asyncrl.processes.children import die_with_parent, one_process
from asyncrl.rewards.load import load


def main(handle: int, parent_pid: int) -> None:
    """Serves the socket `handle`. Receives (spec, base_dir, dataset, kwargs), then RewardRequests, each with a
    number that its answer repeats.

    Answers the first with the function's `per_group`, or with a text if it cannot be loaded, and each request
    with its list of Scores, or with a text if it ran out of memory: then this process had better be replaced.
    """
    die_with_parent(parent_pid)
    os.set_inheritable(handle, False)
    connection = Connection(handle)
    number, (spec, base_dir, dataset, kwargs) = connection.recv()
    try:
        with one_process():
            function = load(spec, Path(base_dir), dataset, kwargs)
            _ = function.ready
    except UserError as error:
        connection.send((number, str(error)))
        return
    connection.send((number, function.per_group))
    while True:
        try:
            number, request = connection.recv()
        except EOFError:
            return
        try:
            answer: object = function.score(request)
        except MemoryError as error:
            answer = f"the reward ran out of memory: {one_line(error)}"
        connection.send((number, answer))
