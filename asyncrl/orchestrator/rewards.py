"""The actors of `rewards.placement`: started, watched, counted when they are lost. Ray starts each again.

    loading --functions there--> serving --no sign of life, or that of its successor--> loading
Waits for: room on the cluster and the functions, `deadlines.start_s`, and later, while another one serves, for as long
as it takes; a sign of life, `deadlines.warn_s`. Unblocked by: whoever leaves room; the actor, or its end.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError

from asyncrl.errors import BudgetSpent, DeadlineExceeded
from asyncrl.orchestrator.actors import reward_role
from asyncrl.orchestrator.fleet import close
from asyncrl.orchestrator.notices import Notices
from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.processes.orphans import ProcessTable
from asyncrl.recipe.schema import Recipe

logger = logging.getLogger(__name__)

_EVERY_S = 2.0
"""Between two signs of life."""


class RewardActors:
    """`actors` by their numbers, who are `heard` as well; `post` takes errors to the driver's loop."""

    def __init__(
        self,
        recipe: Recipe,
        actors: Sequence[ActorHandle],
        heard: Notices,
        processes: ProcessTable,
        waiting: WaitingFor,
        post: Callable[[BaseException], None],
    ) -> None:
        self._recipe, self._processes, self._waiting, self._post = recipe, processes, waiting, post
        named = ((reward_role(number), actor) for number, actor in enumerate(actors))
        self._actors = {name: heard.of(name, actor) for name, actor in named}
        self._serving: dict[str, str] = {}
        """Their lives, which they say themselves."""
        self._in_a_row: Counter[str] = Counter()
        self._watching: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns once all have loaded the functions. Raises UserError if they cannot, DeadlineExceeded."""
        await asyncio.gather(*map(self._load, self._actors))
        self._watching += [asyncio.create_task(self._watch(name)) for name in self._actors]

    async def _load(self, name: str) -> None:
        placement, deadline_s = self._recipe.rewards.placement, self._recipe.deadlines.start_s
        what = f"room for {placement}, and to load the reward"
        started = await self._waiting(self._started(name), name, what, deadline_s)
        self._processes.put(name, started)
        self._serving[name] = started["life"]
        logger.info("%s runs on %s and reserves %s", name, started["host"], placement)

    async def _started(self, name: str) -> dict[str, Any]:
        """What it says of itself once it has started; if it dies meanwhile, its successor."""
        while True:
            try:
                started: dict[str, Any] = await self._actors[name].start.remote()
                return started
            except ActorUnavailableError:
                await asyncio.sleep(_EVERY_S)

    async def _watch(self, name: str) -> None:
        try:
            while True:
                await asyncio.sleep(_EVERY_S)
                life, num_scored = await self._sign_of_life(name)
                if life != self._serving[name]:
                    del self._serving[name]
                    self._processes.pop(name)
                    self._count(name)
                    await self._load_in_time(name)
                elif num_scored:
                    self._in_a_row[name] = 0
        except Exception as error:
            self._post(error)

    async def _sign_of_life(self, name: str) -> tuple[str, int]:
        """Whose it is, and how many groups that one has scored; of one that gives none, of nobody."""
        deadline_s = self._recipe.deadlines.warn_s
        try:
            found: tuple[str, int] = await self._waiting(
                self._actors[name].ping.remote(), name, "a sign of life", deadline_s
            )
            return found
        except ActorUnavailableError:
            return "", 0
        except DeadlineExceeded:
            logger.warning("%s gives no sign of life within %g s (deadlines.warn_s), and is ended", name, deadline_s)
            ray.kill(self._actors[name], no_restart=False)
            return "", 0

    def _count(self, name: str) -> None:
        """It is lost. Raises BudgetSpent if it was so too often."""
        self._in_a_row[name] += 1
        limit = self._recipe.budgets.max_consecutive_restarts
        if self._in_a_row[name] > limit:
            raise BudgetSpent(
                f"{name} was lost {self._in_a_row[name]} times without a scored group between "
                f"(budgets.max_consecutive_restarts is {limit}); see what its node and Ray's logs say of it"
            )
        logger.warning("%s is lost; it is started again, and what it was asked is asked again", name)

    async def _load_in_time(self, name: str) -> None:
        said = False
        while True:
            try:
                return await self._load(name)
            except DeadlineExceeded:
                if not self._serving:
                    raise
            if not said:
                logger.warning(
                    "%s has found no room within %g s (deadlines.start_s): the run goes on with %d of %d reward actors "
                    "until there is some",
                    *(name, self._recipe.deadlines.start_s, len(self._serving), len(self._actors)),
                )
            said = True

    async def close(self) -> None:
        for watching in self._watching:
            watching.cancel()
        await close(self._waiting, {name: self._actors[name] for name in self._serving})
