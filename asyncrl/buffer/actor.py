"""The buffer actor: finished groups between the generators and the trainer. It is an index over the journal.

    generator --put--> journal (durable) --take--> trainer

A group is committed when its bytes are durable; what the index says is in the files, so a buffer that died is built
again by reading them (Ray restarts the actor, and repeats the calls that were in flight). Bytes are never decoded
here, and not kept in memory: a batch is read back from pages that the system still has. Back-pressure is the
controller's slots. The trainer takes the groups of a batch; anyone else reads all that is committed, in order, from a
cursor of their own (`since`; `buffer/follow.py` from outside the run). Waits for: the disk; `since` for a group, as
long as its caller says. Unblocked by: the disk, or its error; a put.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from functools import cached_property
from pathlib import Path
from pickle import PickleBuffer

import ray

from asyncrl.buffer import log
from asyncrl.buffer.commit import GroupCommit
from asyncrl.buffer.records import GROUP, GROUPS_STREAM, groups
from asyncrl.observe import relay
from asyncrl.processes.crossing import crossing
from asyncrl.processes.nodes import ALMOST_NO_CPU
from asyncrl.recipe.schema import JournalRecipe
from asyncrl.rollout.trajectory import key_of
from asyncrl.storage.run_dir import make_alike
from asyncrl.storage.sight import Sight

Key = tuple[int, int]
"""(task, attempt) of a group."""

Cursor = tuple[int, int]
"""(segment, offset) of the last group that a consumer has read; it means the same to a buffer built again."""
START: Cursor = (-1, 0)


class Buffer:
    """Plain class; `BufferActor` is its Ray shell. Methods are coroutines: puts share an fsync."""

    def __init__(self, folder: Path, recipe: JournalRecipe) -> None:
        self._folder, self._recipe = folder, recipe
        self._news = asyncio.Condition()

    # Opened at the first call, not at the start: a damaged journal is then that call's error, in its own words.
    @cached_property
    def _index(self) -> dict[Key, log.Position]:
        index: dict[Key, log.Position] = {}
        log.sync_last(self._folder, GROUPS_STREAM)
        for record in groups(self._folder):
            key = key_of(record.payload)
            index.pop(key, None)  # Their order is that of the positions.
            index[key] = record.position
        return index

    @cached_property
    def _in_order(self) -> list[log.Position]:
        """Of the groups in the index, as they were committed."""
        return list(self._index.values())

    @cached_property
    def _commit(self) -> GroupCommit:
        writer = log.JournalWriter(self._folder, GROUPS_STREAM)
        return GroupCommit(writer, self._recipe.sync_window_s, self._recipe.sync_window_bytes)

    async def see(self, sight: Sight) -> None:
        """Raises UserError if the journal is not where the driver has it."""
        await asyncio.to_thread(sight.require, "the buffer")

    async def put(self, keys: list[Key], frames: list[bytes]) -> None:
        """Commit finished groups; returns once they are durable. A repeated call changes nothing. Another group under
        the key of one that is here takes its place: that one was generated before a crash of the machine, which cost
        the control stream the task's start.

        Raises JournalWriteError if the disk does not take them.
        """
        for key, frame in zip(keys, frames, strict=True):
            if known := self._index.get(key):
                if log.read_at(self._folder, GROUPS_STREAM, known) == memoryview(frame):
                    continue
                self._in_order.remove(known)
                del self._index[key]
            position = self._commit.write(GROUP, memoryview(frame))
            self._in_order.append(position)
            self._index[key] = position
        await self._commit.durable()
        async with self._news:
            self._news.notify_all()

    async def holds(self, keys: list[Key]) -> list[Key]:
        """Those of the keys that are committed."""
        held = [key for key in keys if tuple(key) in self._index]
        if held:  # One may still be on its way to the disk.
            await self._commit.durable()
        return held

    async def take(self, keys: list[Key]) -> list[bytes]:
        """The encoded groups, in the order of the keys; they stay here. Raises KeyError for one that is not here."""
        return [log.read_at(self._folder, GROUPS_STREAM, self._index[tuple(key)]) for key in keys]

    async def since(self, cursor: Cursor, most: int, wait_s: float) -> list[tuple[Cursor, bytes]]:
        """Up to `most` encoded groups behind the cursor, in the order of their commits, with the cursor of each.

        Waits for the first of them; after `wait_s` seconds there are none. Groups that were released are skipped.
        """
        try:
            async with asyncio.timeout(wait_s), self._news:
                await self._news.wait_for(lambda: self._place(cursor) < len(self._in_order))
        except TimeoutError:
            return []
        place = self._place(cursor)
        found = self._in_order[place : place + most]
        await self._commit.durable()
        return [((p.segment, p.offset), log.read_at(self._folder, GROUPS_STREAM, p)) for p in found]

    def _place(self, cursor: Cursor) -> int:
        return bisect_right(self._in_order, tuple(cursor), key=lambda p: (p.segment, p.offset))

    async def release(self, needed: dict[int, int], drawn: int) -> None:
        """Forget what no recovery will ask for, and delete the segments that only held that.

        `needed`: current attempt of every task that is in flight or was trained since the last checkpoint;
        `drawn`: tasks drawn when this was said. What a later task, or a later attempt, commits meanwhile stays.
        """
        if self._recipe.keep == "all":
            return
        for task, attempt in list(self._index):
            if task < drawn and attempt < needed.get(task, attempt + 1):
                del self._index[(task, attempt)]
        self._in_order[:] = self._index.values()
        used = {position.segment for position in self._index.values()} | {self._commit.writer.segment}
        for segment in log.segments(self._folder, GROUPS_STREAM):
            if segment not in used:
                log.segment_path(self._folder, GROUPS_STREAM, segment).unlink()


class BufferShell(Buffer):
    """Its answers hold the bytes in place, where Ray would copy plain ones into its message and out of it again."""

    def __init__(self, folder: Path, recipe: JournalRecipe) -> None:
        super().__init__(folder, recipe)
        make_alike(folder.parent)
        relay.relay()

    async def take_notices(self) -> list[relay.Notice]:
        """Warnings since the last call."""
        return relay.take()

    async def take(self, keys: list[Key]) -> list[PickleBuffer]:  # type: ignore[override]
        return [PickleBuffer(frame) for frame in await super().take(keys)]

    async def since(self, cursor: Cursor, most: int, wait_s: float) -> list[tuple[Cursor, PickleBuffer]]:  # type: ignore[override]
        return [(at, PickleBuffer(frame)) for at, frame in await super().since(cursor, most, wait_s)]


BufferActor = ray.remote(num_cpus=ALMOST_NO_CPU, max_restarts=-1, max_task_retries=-1)(crossing(BufferShell))
