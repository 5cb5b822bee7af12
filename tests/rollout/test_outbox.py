"""Groups that finish together go to the buffer together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncrl.errors import RunFailed
from asyncrl.rollout.outbox import Outbox


class SlowBuffer:
    """Acknowledges when it is told to; what it got is in `calls`."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[tuple[int, int]], list[bytes]]] = []
        self.answers: list[asyncio.Future[None]] = []
        self.put = self

    def remote(self, keys: Any, frames: Any) -> asyncio.Future[None]:
        self.calls.append((keys, [bytes(frame) for frame in frames]))
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]


def test_what_is_put_during_a_call_goes_with_the_next_one() -> None:
    async def scenario() -> None:
        buffer = SlowBuffer()
        outbox = Outbox(buffer)  # type: ignore[arg-type]
        first = asyncio.create_task(outbox.put(0, 0, b"a"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        later = [asyncio.create_task(outbox.put(n, 1, b"bcd"[n : n + 1])) for n in range(3)]
        await asyncio.sleep(0)
        assert buffer.calls == [([(0, 0)], [b"a"])]
        buffer.answers[0].set_result(None)
        await asyncio.wait_for(first, 5)
        assert not any(task.done() for task in later)
        assert buffer.calls[1:] == [([(0, 1), (1, 1), (2, 1)], [b"b", b"c", b"d"])]
        later[1].cancel()
        buffer.answers[1].set_exception(RunFailed("the disk is full"))
        for task in (later[0], later[2]):
            with pytest.raises(RunFailed, match="the disk is full"):
                await asyncio.wait_for(task, 5)
        last = asyncio.create_task(outbox.put(9, 0, b"z"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        buffer.answers[2].set_result(None)
        await asyncio.wait_for(last, 5)

    asyncio.run(scenario())
