"""Reading a run's groups from outside it, while it goes on: one more consumer of its buffer.

for group, cursor in follow("runs/mine"):
    ...                       # in a process that is connected to the run's Ray cluster
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import ray

from asyncrl.buffer.actor import START, Cursor
from asyncrl.errors import UserError
from asyncrl.rollout.trajectory import Group, decode

_AT_A_TIME = 64


def new_name(run_dir: Path) -> str:
    """Of a buffer actor, by which it is found; another one each time, for the one before may still be dying."""
    return f"{_prefix(run_dir)}{uuid.uuid4().hex[:8]}"


def follow(run_dir: str | Path, cursor: Cursor = START, wait_s: float = 600.0) -> Iterator[tuple[Group, Cursor]]:
    """Every group that the run commits, each with the cursor behind it: given again, that goes on from there.

    Begins with the oldest group that a resume of the run would need. Ends after `wait_s` seconds without a new one, and
    with the run. Raises UserError if no such run is running on the Ray cluster that this process is connected to.
    """
    run_dir = Path(run_dir)
    named = ray.util.list_named_actors(all_namespaces=True)
    found = [actor for actor in named if actor["name"].startswith(_prefix(run_dir))]
    if not found:
        raise UserError(f"{run_dir}: no such run is running on this Ray cluster; give the folder of one that is")
    buffer = ray.get_actor(found[-1]["name"], found[-1]["namespace"])
    while True:
        try:
            # The buffer's deadline is the one that counts; the other is for a buffer that does not answer at all.
            committed = ray.get(buffer.since.remote(cursor, _AT_A_TIME, wait_s), timeout=wait_s + 60)
        except ray.exceptions.RayActorError:
            return
        if not committed:
            return
        for cursor, frame in committed:
            yield decode(frame), cursor


def _prefix(run_dir: Path) -> str:
    return f"asyncrl buffer of {run_dir.resolve()} "
