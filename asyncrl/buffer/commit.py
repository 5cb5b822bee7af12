"""Durable commits with one fsync for many: what comes within a window of time or bytes shares it.

append --> file --> [window] --> fsync in a thread --> all that was appended before it returns
"""

from __future__ import annotations

import asyncio
import contextlib

from asyncrl.buffer.log import JournalWriter, Position


class GroupCommit:
    """Lives on one event loop. `window_s`: how long the first of a batch waits for company; `window_bytes` ends
    the wait early."""

    def __init__(self, writer: JournalWriter, window_s: float, window_bytes: int) -> None:
        self.writer = writer
        self._window_s, self._window_bytes = window_s, window_bytes
        self._pending: list[asyncio.Future[None]] = []
        self._pending_bytes = 0
        self._full = asyncio.Event()
        self._flushing: asyncio.Task[None] | None = None
        self.num_syncs = 0

    def write(self, kind: int, payload: bytes | memoryview) -> Position:
        """Append a record; it is durable once a `durable` called after this has returned."""
        position = self.writer.append(kind, payload)
        self._pending_bytes += len(payload)
        if self._pending_bytes >= self._window_bytes:
            self._full.set()
        return position

    async def durable(self) -> None:
        """Returns once everything written so far is durable. Raises JournalWriteError if it cannot be made so."""
        durable = asyncio.get_running_loop().create_future()
        self._pending.append(durable)
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        await durable

    async def _flush(self) -> None:
        while self._pending:
            if self._window_s:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self._window_s)
            batch, self._pending, self._pending_bytes = self._pending, [], 0
            self._full.clear()
            try:
                await asyncio.to_thread(self.writer.sync)
            except Exception as error:
                outcome: Exception | None = error
            else:
                outcome = None
            self.num_syncs += 1
            for durable in batch:
                if durable.done():
                    continue
                if outcome is None:
                    durable.set_result(None)
                else:
                    durable.set_exception(outcome)
        self._flushing = None
