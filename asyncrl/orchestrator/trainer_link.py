"""The trainer, whichever process it is now: a lost one is made again, and what it had done since is done again.

    lost --> [new actor: newest snapshot or checkpoint, then the batches since] --> ready
What a trainer has done counts only while it is the one: an answer of one that was lost meanwhile is no answer. So what
is known of it (`trained`, `live`) is what the next one starts from.
Waits for: the trainer's calls, each with a deadline; `ready` for the actor that is being made. The generators go on
meanwhile, as far as the staleness bound lets them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

from ray.exceptions import RayActorError

from asyncrl.checkpoint.parity import SnapshotLost
from asyncrl.checkpoint.snapshots import Snapshots
from asyncrl.control.messages import Train
from asyncrl.errors import BudgetSpent
from asyncrl.metric_names import nth
from asyncrl.observe.trace import TraceFile
from asyncrl.orchestrator.ranks import Ranks
from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.processes.deaths import reason
from asyncrl.processes.orphans import ProcessTable
from asyncrl.recipe.schema import Recipe
from asyncrl.terminal.live import LiveView
from asyncrl.trainer.messages import Loaded, ResumePoint, TrainResult, role
from asyncrl.weights.verify import Verification

logger = logging.getLogger(__name__)


class TrainerLink:
    """`create` makes the actors of all ranks; `origin(trained, live, snapshots)` says where they start from, and keeps
    that for them. `trained`: version that the trainer has come to, `live`: the one that generators have from it."""

    def __init__(
        self,
        recipe: Recipe,
        create: Callable[[], Ranks],
        origin: Callable[[int, int, Snapshots | None], AbstractAsyncContextManager[ResumePoint]],
        snapshots: Snapshots | None,
        processes: ProcessTable,
        waiting: WaitingFor,
        trace: TraceFile,
        view: LiveView,
        verification: Verification,
        *,
        trained: int,
        live: int,
    ) -> None:
        self._recipe, self._create, self._origin = recipe, create, origin
        self._snapshots, self._processes, self._waiting = snapshots, processes, waiting
        self._trace, self._view, self._verification = trace, view, verification
        self._trained, self._live = trained, live
        self.first = 0
        """Version that this trainer has started from: it has no older one."""
        self._handle: Ranks | None = None
        self._starting: asyncio.Future[Ranks] | None = None
        self._in_a_row = 0

    def start(self) -> asyncio.Future[Ranks]:
        """Begin to start the trainer; `ready` waits for it."""
        self._starting = asyncio.create_task(self._start())
        return self._starting

    async def _start(self) -> Ranks:
        snapshots = self._snapshots
        while True:
            handle = self._create()
            try:
                async with self._origin(self._trained, self._live, snapshots) as origin:
                    await self._load(handle, origin)
                    await self._train_again(handle, origin)
            except SnapshotLost as error:
                handle.kill()
                logger.warning("%s; the trainer starts from the newest checkpoint instead", reason(error))
                snapshots = None
            except RayActorError as error:
                handle.kill()
                self._count(error)
            else:
                self._handle, self.first = handle, origin.version
                return handle

    async def _load(self, handle: Ranks, origin: ResumePoint) -> None:
        deadline_s, rendezvous = self._recipe.deadlines.start_s, None
        if self._recipe.trainer.ranks > 1:
            rendezvous = await self._waiting(handle.first("rendezvous"), "trainer", "its first rank", deadline_s)
        starting = handle.call("start", origin, self._snapshots, rendezvous)
        what = f"to load version {origin.version}"
        loaded: list[Loaded] = await self._waiting(starting, "trainer", what, deadline_s)
        for rank, one in enumerate(loaded):
            self._processes.put(role(rank), one.process)
        if loaded[0].kernels:
            logger.info("trainer: %s", loaded[0].kernels)
        initial, now = loaded[0].probes
        self._verification.trainer_loaded(initial)
        self._verification.expect(origin.version, now)

    async def _train_again(self, handle: Ranks, origin: ResumePoint) -> None:
        """The batches that were trained since the state it has loaded."""
        num = len(origin.batches)
        if not num:
            return
        with self._view.during(f"training {num} batch(es) again", total=num) as phase:
            for batch in origin.batches:
                training = handle.call("train_again", batch, origin.live)
                what = f"step {nth(batch.step)} again"
                probes = await self._waiting(training, "trainer", what, self._recipe.deadlines.step_s)
                self._verification.expect(batch.step + 1, probes[0])
                phase.done += 1

    @property
    def serves(self) -> bool:
        return self._handle is not None

    async def ready(self) -> Ranks:
        """The trainer, once it is there. Raises what its start ended in."""
        assert self._starting is not None
        return await asyncio.shield(self._starting)

    def lost(self, handle: Ranks, error: Exception) -> None:
        """The process behind `handle` is gone; said as often as it is noticed. Raises BudgetSpent."""
        if handle is not self._handle:
            return
        self._handle = None
        handle.kill()
        try:
            self._count(error)
        except BudgetSpent as spent:
            # Whoever asks for the trainer from now on is told too.
            self._starting = asyncio.get_running_loop().create_future()
            self._starting.set_exception(spent)
            self._starting.exception()
            raise
        self.start()

    def sent(self, handle: Ranks, version: int) -> bool:
        """Generators have this version from the trainer behind `handle`; False if that is no longer the one."""
        if handle is not self._handle:
            return False
        self._live = version
        return True

    def _count(self, error: Exception) -> None:
        self._in_a_row += 1
        limit = self._recipe.budgets.max_consecutive_restarts
        if self._in_a_row > limit:
            raise BudgetSpent(
                f"the trainer was lost {self._in_a_row} times without a step between "
                f"(budgets.max_consecutive_restarts is {limit}); the last time: {reason(error)}"
            )
        logger.warning("trainer is lost (%s); it is started again", reason(error))

    async def train(self, batch: Train, publishing: Callable[[], int]) -> TrainResult:
        """Train a batch, on as many trainers as it takes."""
        while True:
            handle = await self.ready()
            training = handle.call("train", batch, publishing(), self._verification.wanted)
            try:
                deadline_s = self._recipe.deadlines.step_s
                results = await self._waiting(training, "trainer", f"step {nth(batch.step)}", deadline_s)
            except RayActorError as error:
                self.lost(handle, error)
            else:
                if handle is not self._handle:
                    continue
                self._trained, self._in_a_row = batch.step + 1, 0
                self._verification.expect(batch.step + 1, results[0].probe)
                for rank, result in enumerate(results):
                    self._trace.write(role(rank), result.spans)
                gaps = {number: gaps for result in results for number, gaps in result.report.gaps.items()}
                return replace(results[0], report=replace(results[0].report, gaps=gaps))

    async def compare_export(self, folder: Path | None) -> None:
        """See that model/ of the checkpoint of the trainer's state, if there is one, is the trainer's model when it is
        loaded again. Raises RunFailed if it is not."""
        while folder is not None:
            self._view.phase("comparing the exported model with the trainer's")
            handle = await self.ready()
            comparing, deadline_s = handle.call("compare_export", folder), self._recipe.deadlines.checkpoint_s
            try:
                await self._waiting(comparing, "trainer", "the comparison of the exported model", deadline_s)
                return
            except RayActorError as error:
                self.lost(handle, error)

    async def close(self) -> None:
        """Of one that does not answer, this user's next run removes what it has in shared memory."""
        if self._handle is not None:
            try:
                await self._waiting(self._handle.call("close"), "trainer", "to close", deadline_s=10.0)
            except Exception as error:
                logger.warning("the trainer did not close: %s", reason(error))

    def forget(self) -> None:
        """There is nobody left to call."""
        self._handle = None
