"""A producer's way to the buffer: what is put while a call is in flight goes with the next one, all in one.

Waits for: the buffer's acknowledgement. Unblocked by: the disk, or the death of the buffer (Ray repeats the call).
"""

from __future__ import annotations

import asyncio
from pickle import PickleBuffer

from ray.actor import ActorHandle


class Outbox:
    """Lives on one event loop."""

    def __init__(self, buffer: ActorHandle) -> None:
        self._buffer = buffer
        self._waiting: list[tuple[tuple[int, int], bytes, asyncio.Future[None]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def put(self, task: int, attempt: int, frame: bytes) -> None:
        """Returns once the group is durable. Raises what the buffer raises."""
        committed = asyncio.get_running_loop().create_future()
        self._waiting.append(((task, attempt), frame, committed))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        await committed

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            outcome: Exception | None = None
            try:
                # In place: as plain bytes Ray would copy them into its message first.
                await self._buffer.put.remote([key for key, _, _ in batch], [PickleBuffer(f) for _, f, _ in batch])
            except Exception as error:
                outcome = error
            for _, _, committed in batch:
                if committed.done():
                    continue
                if outcome is None:
                    committed.set_result(None)
                else:
                    committed.set_exception(outcome)
        self._sending = None
