"""The driver's questions to the buffer actor, each with a deadline."""

from __future__ import annotations

from typing import Any

from ray.actor import ActorHandle

from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.rollout.summary import GroupSummary, summarise
from asyncrl.rollout.trajectory import decode
from asyncrl.storage.sight import Sight

Key = tuple[int, int]
"""Task and attempt."""


class BufferLink:
    def __init__(self, buffer: ActorHandle, waiting: WaitingFor, deadline_s: float) -> None:
        self._buffer, self._waiting, self._deadline_s = buffer, waiting, deadline_s

    async def see(self, sight: Sight) -> None:
        """Raises what the buffer does if it does not see the run directory."""
        await self._ask("see", sight)

    async def holds(self, keys: list[Key]) -> set[Key]:
        """Those of the groups that it has."""
        return {(task, attempt) for task, attempt in await self._ask("holds", keys)} if keys else set()

    async def summaries(self, keys: list[Key]) -> list[GroupSummary]:
        """Of groups that it has."""
        return [summarise(decode(frame)) for frame in await self._ask("take", keys)] if keys else []

    async def _ask(self, method: str, question: Any) -> Any:
        asked = getattr(self._buffer, method).remote(question)
        return await self._waiting(asked, "buffer", method, self._deadline_s)
