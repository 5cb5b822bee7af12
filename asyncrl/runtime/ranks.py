"""The ranks of the trainer as one: SPMD processes that all take the same calls, and are lost together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

_PATIENCE_S = 10.0


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
            done, others = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
            if others and not any(isinstance(call.exception(), RayActorError) for call in done):
                # One that waits for a dead one may notice it before Ray does: then that is the error.
                done |= (await asyncio.wait(others, timeout=_PATIENCE_S, return_when=asyncio.FIRST_EXCEPTION))[0]
            errors = [error for call in done if (error := call.exception())]
            if errors:
                raise next((e for e in errors if isinstance(e, RayActorError)), errors[0])
            return [call.result() for call in calls]
        finally:
            for call in calls:
                call.cancel()

    def kill(self) -> None:
        for handle in self.handles:
            ray.kill(handle)
