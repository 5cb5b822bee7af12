"""What the actors warn of, said by the driver: in the terminal, in status.json and on the pages made from it.

    actor --take_notices, once a second--> driver's log, with the actor's name
One call to an actor is in flight at a time, and nobody waits for it: an actor that is busy or hangs says its warnings
late, a dead one no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError

from asyncrl.observe.relay import Notice, Repeats
from asyncrl.orchestrator.ranks import Ranks
from asyncrl.trainer.messages import role

logger = logging.getLogger(__name__)

EVERY_S, _LAST_S = 1.0, 2.0


class Notices:
    """The actors that are asked, by name."""

    def __init__(self) -> None:
        self._actors: dict[str, ActorHandle] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._repeats = Repeats()

    def of(self, name: str, handle: ActorHandle) -> ActorHandle:
        """Ask this actor from now on, in the place of the one that had the name; returns it."""
        self._actors[name] = handle
        if asking := self._asking.pop(name, None):
            asking.cancel()
        return handle

    def of_ranks(self, ranks: Ranks) -> Ranks:
        """As `of`, of each."""
        for rank, handle in enumerate(ranks.handles):
            self.of(role(rank), handle)
        return ranks

    @asynccontextmanager
    async def said(self) -> AsyncIterator[None]:
        """While the block runs; what is left at its end is asked for once more."""
        asking = asyncio.create_task(self._ask_on())
        try:
            yield
        finally:
            asking.cancel()
            await self.last()

    async def _ask_on(self) -> None:
        while True:
            self._ask_all()
            await asyncio.sleep(EVERY_S)

    def _ask_all(self) -> None:
        for name, handle in self._actors.items():
            if name not in self._asking or self._asking[name].done():
                self._asking[name] = asyncio.create_task(self._ask(name, handle))

    async def last(self) -> None:
        """Ask once more whoever answers within two seconds."""
        for _ in range(2):
            # A call that is in flight may have been answered before the last warning.
            self._ask_all()
            if self._asking:
                await asyncio.wait(self._asking.values(), timeout=_LAST_S / 2)

    async def _ask(self, name: str, handle: ActorHandle) -> None:
        try:
            notices: list[Notice] = await handle.take_notices.remote()
        except RayError as error:
            # Its death is someone else's to notice.
            if isinstance(error, ActorDiedError) and self._actors.get(name) is handle:
                del self._actors[name]
            return
        for level, text in notices:
            # Ranks and replicas say the same.
            if words := self._repeats.words(text, text):
                logger.log(level, "%s: %s", name, words)
