"""The reward process: imports the functions once, then scores requests until its parent hangs up."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path

from asyncrl.errors import UserError
from asyncrl.plugins import one_line
from asyncrl.processes.children import die_with_parent, one_process
from asyncrl.rewards.load import load_part


def main(handle: int, parent_pid: int) -> None:
    """Serves the socket `handle`. Receives (parts, base_dir), then (place of a part, RewardRequest), each with a number
    that its answer repeats.

    Answers the first with the `per_group` of each part, or with a text if one cannot be loaded, and each request
    with its list of Scores, or with a text if it ran out of memory: then this process had better be replaced.
    """
    die_with_parent(parent_pid)
    os.set_inheritable(handle, False)
    connection = Connection(handle)
    number, (parts, base_dir) = connection.recv()
    try:
        with one_process():
            functions = [load_part(part, Path(base_dir)) for part in parts]
            for function in functions:
                _ = function.ready
    except UserError as error:
        connection.send((number, str(error)))
        return
    connection.send((number, [function.per_group for function in functions]))
    while True:
        try:
            number, (place, request) = connection.recv()
        except EOFError:
            return
        try:
            answer: object = functions[place].score(request)
        except MemoryError as error:
            answer = f"the reward ran out of memory: {one_line(error)}"
        connection.send((number, answer))
