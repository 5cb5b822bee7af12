"""The buffer actor: finished groups between the generators and the trainer. It is an index over the journal.

    generator --put--> journal (durable) --take--> trainer

A group is committed when its bytes are durable; what the index says is in the files, so a buffer that died is built
again by reading them (Ray restarts the actor, and repeats the calls that were under way). Bytes are never decoded
here, and not kept in memory: a batch is read back from pages that the system still has. Back-pressure is the
controller's slots. Waits for: the disk. Unblocked by: the disk, or its error.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import ray

from asyncrl.journal import log
from asyncrl.journal.commit import GroupCommit
from asyncrl.journal.records import GROUP, GROUPS_STREAM, groups
from asyncrl.recipe.schema import JournalRecipe
from asyncrl.rollout.trajectory import key_of
from asyncrl.runtime.nodes import ALMOST_NO_CPU

Key = tuple[int, int]
"""(task, attempt) of a group."""


class Buffer:
    """Plain class; `BufferActor` is its Ray shell. Methods are coroutines: puts share an fsync."""

    def __init__(self, folder: Path, recipe: JournalRecipe) -> None:
        self._folder, self._recipe = folder, recipe

    # Opened at the first call, not at the start: a damaged journal is then that call's error, in its own words.
    @cached_property
    def _index(self) -> dict[Key, log.Position]:
        index: dict[Key, log.Position] = {}
        log.sync_last(self._folder, GROUPS_STREAM)
        for record in groups(self._folder):
            index.setdefault(key_of(record.payload), record.position)
        return index

    @cached_property
    def _commit(self) -> GroupCommit:
        writer = log.JournalWriter(self._folder, GROUPS_STREAM)
        return GroupCommit(writer, self._recipe.sync_window_s, self._recipe.sync_window_bytes)

    async def put(self, task: int, attempt: int, frame: bytes) -> None:
        """Commit a finished group; returns once it is durable. A repeated call changes nothing.

        Raises JournalWriteError if the disk does not take it.
        """
        if (task, attempt) not in self._index:
            self._index[(task, attempt)] = self._commit.write(GROUP, frame)
        await self._commit.durable()

    async def holds(self, keys: list[Key]) -> list[Key]:
        """Those of the keys that are committed."""
        held = [key for key in keys if tuple(key) in self._index]
        if held:  # One may still be on its way to the disk.
            await self._commit.durable()
        return held

    async def take(self, keys: list[Key]) -> list[bytes]:
        """The encoded groups, in the order of the keys; they stay here. Raises KeyError for one that is not here."""
        return [log.read_at(self._folder, GROUPS_STREAM, self._index[tuple(key)]) for key in keys]

    async def release(self, needed: dict[int, int], drawn: int) -> None:
        """Forget what no recovery will ask for, and delete the segments that only held that.

        `needed`: current attempt of every task that is under way or was trained since the last checkpoint;
        `drawn`: tasks drawn when this was said. What a later task, or a later attempt, commits meanwhile stays.
        """
        if self._recipe.keep == "all":
            return
        for task, attempt in list(self._index):
            if task < drawn and attempt < needed.get(task, attempt + 1):
                del self._index[(task, attempt)]
        used = {position.segment for position in self._index.values()} | {self._commit.writer.segment}
        for segment in log.segments(self._folder, GROUPS_STREAM):
            if segment not in used:
                log.segment_path(self._folder, GROUPS_STREAM, segment).unlink()


BufferActor = ray.remote(num_cpus=ALMOST_NO_CPU, max_restarts=-1, max_task_retries=-1)(Buffer)
