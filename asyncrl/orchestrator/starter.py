"""One generator from its making to its loaded model, on as many tries as the budget allows.

    made --room on the cluster--> placed --engine, model--> loaded
Waits for: room, `deadlines.start_s`, and while enough others serve for as long as it takes; the model,
`deadlines.start_s`. Unblocked by: whoever leaves room; the engine, or its end.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from asyncrl.errors import BudgetSpent, DeadlineExceeded
from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.processes import orphans
from asyncrl.processes.deaths import reason
from asyncrl.processes.orphans import ProcessTable
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.engine import EngineDead
from asyncrl.weights.verify import Verification

logger = logging.getLogger(__name__)


class Starter:
    """`serving`: how many generators serve."""

    def __init__(
        self,
        recipe: Recipe,
        create: Callable[[str], ActorHandle],
        processes: ProcessTable,
        waiting: WaitingFor,
        verification: Verification,
        serving: Callable[[], int],
    ) -> None:
        self._recipe, self._create, self._processes = recipe, create, processes
        self._waiting, self._verification, self._serving = waiting, verification, serving
        self.workers: dict[str, int] = {}
        """Engine workers of each generator, of one that was lost too: a push may still name it."""
        self.without_room: set[str] = set()
        """Generators without which the run goes on."""
        self._in_a_row: Counter[str] = Counter()

    @property
    def _enough_serve(self) -> bool:
        return self._serving() >= self._recipe.rollout.fewest_replicas

    async def load(self, name: str) -> ActorHandle:
        """A generator that has loaded its model. Raises BudgetSpent; DeadlineExceeded unless enough others serve."""
        while True:
            await self._end_orphans(name)
            handle = self._create(name)
            try:
                await self._placed(name, handle)
                loading, deadline_s = handle.start.remote(), self._recipe.deadlines.start_s
                started = await self._waiting(loading, name, "to load the model", deadline_s)
            except (RayActorError, EngineDead) as error:
                self.count(name, handle, error)
            except DeadlineExceeded as error:
                if not self._enough_serve:
                    raise
                self.count(name, handle, error)
            else:
                self._loaded(name, started)
                return handle

    async def _placed(self, name: str, handle: ActorHandle) -> None:
        deadline_s, rollout = self._recipe.deadlines.start_s, self._recipe.rollout
        try:
            while True:
                try:
                    return await self._waiting(handle.placed.remote(), name, "to find room and start", deadline_s)
                except DeadlineExceeded:
                    if not self._enough_serve:
                        raise
                if name not in self.without_room:
                    self.without_room.add(name)
                    logger.warning(
                        "%s has found no room within %g s (deadlines.start_s): the run goes on with %d of %d "
                        "generators until there is some",
                        *(name, deadline_s, self._serving(), rollout.replicas),
                    )
        finally:
            self.without_room.discard(name)

    def _loaded(self, name: str, started: dict[str, Any]) -> None:
        self._processes.put(name, started)
        self.workers[name] = started["num_workers"]
        probe = started["probe"]
        if isinstance(probe, str):
            logger.warning("the weights that %s is sent are not verified: it scores no text (%s)", name, probe)
            probe = None
        self._verification.engine_loaded(name, probe)

    async def _end_orphans(self, name: str) -> None:
        """Engine processes that outlived their actor would keep its memory and cores."""
        before = self._processes.pop(name)
        if before is None:
            return
        ended = await orphans.end_on_node(before["node"], before["processes"], deadline_s=30.0)
        if ended:
            logger.warning("ended %d process(es) that %s had left behind", len(ended), name)

    def count(self, name: str, handle: ActorHandle, error: Exception) -> None:
        """It is lost. Raises BudgetSpent if it was so too often."""
        ray.kill(handle)
        self._in_a_row[name] += 1
        limit = self._recipe.budgets.max_consecutive_restarts
        if self._in_a_row[name] > limit:
            raise BudgetSpent(
                f"{name} was lost {self._in_a_row[name]} times without a finished group between "
                f"(budgets.max_consecutive_restarts is {limit}); the last time: {reason(error)}"
            )
        logger.warning("%s is lost (%s); it is started again, and its tasks too", name, reason(error))

    def works(self, name: str) -> None:
        """It has finished a group."""
        self._in_a_row[name] = 0
