"""The ranks of the trainer as one: SPMD processes that all take the same calls, and are lost together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

_PATIENCE_S = 30.0


@dataclass(frozen=True, eq=False)
class Ranks:
    """Handles of the ranks, rank 0 first."""

    handles: list[ActorHandle]

    async def first(self, method: str, *arguments: Any) -> Any:
        """Rank 0's answer."""
        return await getattr(self.handles[0], method).remote(*arguments)

    async def call(self, method: str, *arguments: Any) -> list[Any]:
        """Every rank's answer to the same call. Raises the first error, or RayActorError if a rank is lost."""
        calls = [asyncio.ensure_future(getattr(handle, method).remote(*arguments)) for handle in self.handles]
        try:
            errors = await self._errors(calls, None)
            if errors and len(calls) > 1 and not any(isinstance(error, RayActorError) for error in errors):
                # One that talks to a dead one may notice it before Ray does, or after that one has answered.
                signs = [asyncio.ensure_future(handle.ping.remote()) for handle in self.handles]
                calls += signs
                errors += await self._errors(signs, _PATIENCE_S)
            if errors:
                raise next((e for e in errors if isinstance(e, RayActorError)), errors[0])
            return [call.result() for call in calls]
        finally:
            for call in calls:
                call.cancel()

    @staticmethod
    async def _errors(calls: list[asyncio.Future[Any]], deadline_s: float | None) -> list[BaseException]:
        """Of those that have ended when the first has failed, or all have ended."""
        done, _ = await asyncio.wait(calls, timeout=deadline_s, return_when=asyncio.FIRST_EXCEPTION)
        return [error for call in done if (error := call.exception())]

    def kill(self) -> None:
        for handle in self.handles:
            ray.kill(handle)
