"""Rewards in Ray actors of their own, anywhere on the cluster: `rewards.placement`.

    generator --score(request)--> RewardActor [the same pool of processes] --scores-->
Ray starts an actor that died again, wherever there is room, and a request that it took with it goes to another one, or
to its successor. Waits for: an answer, for `deadline_s`; then the rewards have failed, and are counted as that.
Unblocked by: the pool, whose calls have time-outs; the driver, which ends an actor that gives no sign of life.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from asyncrl.observe import relay
from asyncrl.processes import orphans, stacks
from asyncrl.processes.crossing import crossing
from asyncrl.recipe.rewards import RewardsRecipe
from asyncrl.rewards.parts import Part
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.score import RewardRequest, Score, failed

_LOOK_AGAIN_S = 0.5
_MORE_TRIES = 2
"""Of one request, after one at each actor: it may be what they die of."""


@dataclass(frozen=True)
class RewardConfig:
    """What reward processes need to start, on whatever machine they land."""

    parts: Mapping[str, tuple[Part, ...]]
    """Functions by the evaluation whose tasks they judge; under "" those that judge all others. None is empty."""
    base_dir: Path
    rewards: RewardsRecipe
    run_dir: Path

    def pools(self) -> dict[str, RewardPool]:
        """By the names of `parts`; their processes start."""
        rewards, log = self.rewards, self.run_dir.resolve() / "rewards.log"
        limits: dict[str, Any] = {"memory_gib": rewards.memory_gib, "file_gib": rewards.file_gib, "log": log}
        return {
            name: RewardPool(parts, self.base_dir, rewards.workers, rewards.timeout_s, **limits)
            for name, parts in self.parts.items()
        }


@ray.remote(max_restarts=-1)
@crossing
class RewardActor:
    """Async actor; calls overlap. Those that it dies under fail, and so do calls until Ray has started it again."""

    def __init__(self, name: str, config: RewardConfig) -> None:
        relay.relay()
        self.name, self.config = name, config
        self.life = secrets.token_hex(8)
        """Tells it from the one before it."""
        self.num_scored = 0
        self.pools = config.pools()

    async def start(self) -> dict[str, Any]:
        """Waits until the functions are loaded; says what processes there are now, and where. Raises UserError."""
        stacks.record(self.config.run_dir / "stacks", self.name)
        await asyncio.gather(*(pool.loaded() for pool in self.pools.values()))
        return {**orphans.here(), "life": self.life}

    async def score(self, name: str, request: RewardRequest) -> list[Score]:
        scores = await self.pools[name].score(request)
        self.num_scored += 1
        return scores

    async def ping(self) -> tuple[str, int]:
        """A sign of life: whose it is, and how many requests that one has scored."""
        return self.life, self.num_scored

    async def take_notices(self) -> list[relay.Notice]:
        """Warnings since the last call."""
        return relay.take()

    async def close(self) -> None:
        for pool in self.pools.values():
            pool.close()


class PlacedRewards:
    """In the place of a RewardPool: the one called `name` of these actors. Lives on one event loop."""

    def __init__(self, actors: Sequence[ActorHandle], name: str, deadline_s: float) -> None:
        self._actors, self._name, self._deadline_s = actors, name, deadline_s
        self._requests: Counter[int] = Counter()
        """In flight, by the actor's place."""
        self._lost: dict[int, asyncio.Task[None]] = {}
        """Actors that died, until they answer again."""

    async def score(self, request: RewardRequest) -> list[Score]:
        """As the pool's; if there is no answer, or one actor after the other died under it, failed Scores."""
        why = f"no answer from rewards.placement within {self._deadline_s:g} s (half of deadlines.rollout_s)"
        try:
            async with asyncio.timeout(self._deadline_s):
                for _ in range(tries := len(self._actors) + _MORE_TRIES):
                    with contextlib.suppress(RayActorError):
                        return await self._ask(request)
                why = f"actors of rewards.placement died under it {tries} times"
        except TimeoutError:
            pass
        return [failed(why)] * len(request.completions)

    async def _ask(self, request: RewardRequest) -> list[Score]:
        """Of the actor that has fewest; if all are lost, of the first that is there again."""
        if len(self._lost) == len(self._actors):
            await asyncio.wait(self._lost.values(), return_when=asyncio.FIRST_COMPLETED)
        place = min(range(len(self._actors)), key=lambda p: (p in self._lost, self._requests[p]))
        self._requests[place] += 1
        try:
            scores: list[Score] = await self._actors[place].score.remote(self._name, request)
            return scores
        except RayActorError:
            if place not in self._lost:
                self._lost[place] = asyncio.create_task(self._return_of(place))
            raise
        finally:
            self._requests[place] -= 1

    async def _return_of(self, place: int) -> None:
        while True:
            with contextlib.suppress(RayActorError):
                await self._actors[place].ping.remote()
                break
            await asyncio.sleep(_LOOK_AGAIN_S)
        del self._lost[place]

    def close(self) -> None:
        """The actors are the driver's."""
        for waiting in self._lost.values():
            waiting.cancel()
