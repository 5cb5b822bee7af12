"""The generators of a run: connected to the weight channel, replaced when they are lost, fewer where there is no room.

    lost --> [its tasks start elsewhere] [new actor --load--> join the channel --live weights--> serving]
Waits for: actors to load; one use of the channel at a time (a publish, or a generator that joins); replicas to
answer. Unblocked by: the actors, or their deadline, after which the silent one is given up like a dead one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from asyncrl.control.messages import Event, GeneratorJoined, GeneratorLost, WeightsLive
from asyncrl.errors import BudgetSpent, DeadlineExceeded
from asyncrl.observe.trace import TraceFile
from asyncrl.orchestrator.ranks import Ranks
from asyncrl.orchestrator.starter import Starter
from asyncrl.orchestrator.trainer_link import TrainerLink
from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.processes.deaths import reason
from asyncrl.processes.orphans import ProcessTable
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.engine import EngineDead
from asyncrl.rollout.occupancy import STATES
from asyncrl.weights.replicas import RayReplicas
from asyncrl.weights.update import PublishReport
from asyncrl.weights.verify import Verification

logger = logging.getLogger(__name__)
T = TypeVar("T")

_STATS_S = 0.5
"""A busy actor answers within milliseconds; a step does not wait for one that does not."""


class PushBroken(Exception):
    """A push failed because the trainer or a generator was lost meanwhile; without them it can be tried again."""


class JoinFailed(Exception):
    """The generator that was to join is lost itself."""


class Fleet:
    """`post` takes events and errors to the driver's loop; `spawn` runs a coroutine beside it."""

    def __init__(
        self,
        recipe: Recipe,
        create: Callable[[str], ActorHandle],
        trainer: TrainerLink,
        processes: ProcessTable,
        waiting: WaitingFor,
        post: Callable[[Event | BaseException], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        trace: TraceFile,
        verification: Verification,
    ) -> None:
        self._recipe, self._trainer = recipe, trainer
        self._waiting, self._post, self._spawn = waiting, post, spawn
        self._trace = trace
        self._verification = verification
        self._comparing: set[str] = set()
        self._names = [f"generator-{i}" for i in range(recipe.rollout.replicas)]
        self.serving: dict[str, ActorHandle] = {}
        self._starter = Starter(recipe, create, processes, waiting, verification, lambda: len(self.serving))
        self._versions: dict[str, int] = {}
        """What the last push that ended gave each generator."""
        self._stats: dict[str, dict[str, float]] = {}
        """What each said of itself last."""
        self._finished_at: dict[str, float] = {}
        self._asked: dict[str, asyncio.Future[dict[str, float] | None]] = {}
        """For its statistics, and not yet heard."""
        self._announced: set[str] = set()
        """Generators that the controller knows of, or will once it reads its inbox."""
        self._channel = asyncio.Lock()
        self._connected: Any = None

    async def start(self, up: Callable[[object], None]) -> None:
        """Start those that the run begins with side by side; each that is up is told."""
        names = self._names[: self._recipe.rollout.first_replicas]
        loading = [asyncio.ensure_future(self._starter.load(name)) for name in names]
        for one in loading:
            one.add_done_callback(up)
        handles = await asyncio.gather(*loading)
        self.serving.update(zip(names, handles, strict=True))

    # -- losses

    def lost(self, name: str, handle: ActorHandle, error: Exception) -> None:
        """A generator is gone; said as often as it is noticed. Its tasks start elsewhere, another takes its place."""
        if self.serving.get(name) is not handle:
            return
        del self.serving[name]
        self._versions.pop(name, None)
        self._stats.pop(name, None)
        self._announced.discard(name)
        self._post(GeneratorLost(name))
        try:
            self._starter.count(name, handle, error)
        except BudgetSpent as spent:
            self._post(spent)
        else:
            self._spawn(self._replace(name))

    def finished_group(self, name: str) -> None:
        self._starter.works(name)
        self._finished_at[name] = asyncio.get_running_loop().time()

    def has_finished_since(self, name: str, when: float) -> bool:
        """Whether the generator has finished a group since (in the event loop's time, s): it works."""
        return self._finished_at.get(name, -math.inf) >= when

    async def _replace(self, name: str) -> None:
        while True:
            handle = await self._starter.load(name)
            try:
                return await self._join(name, handle)
            except JoinFailed as error:
                self._starter.count(name, handle, error)

    async def _join(self, name: str, handle: ActorHandle) -> None:
        """Give it the weights that the others hold, then let it serve. Raises JoinFailed."""
        async with self._channel:
            while True:
                try:
                    report = await self._push({**self.serving, name: handle}, version=None)
                    break
                except BudgetSpent:
                    raise
                except PushBroken as error:
                    if not await self._answers(name, handle):
                        raise JoinFailed(str(error)) from error
                except (RayError, RuntimeError) as error:
                    raise JoinFailed(reason(error)) from error
            self.serving[name] = handle
            self._announced.add(name)
            self._post(GeneratorJoined(name))
            self._post(WeightsLive(report.version))
            logger.warning("%s serves again, with version %d", name, report.version)

    # -- the weight channel

    async def publish(self, version: int) -> PublishReport:
        """Make a version live on all that serve. Raises PushBroken if it can be tried again."""
        async with self._channel:
            if not self.serving:
                raise PushBroken("no generator is left")
            return await self._push(dict(self.serving), version)

    async def first_push(self, fresh: bool) -> list[Event]:
        """Connect all that serve and send them the trainer's weights, but for a fresh run, whose generators loaded
        the same; returns what the controller is to hear of it. Who is lost meanwhile, or is not waited for, joins
        later, by itself."""
        while self.serving:
            with contextlib.suppress(PushBroken):
                async with self._channel:
                    version = 0
                    if fresh:
                        await self._attempt(dict(self.serving), self._connect)
                        self._versions.update(dict.fromkeys(self.serving, version))
                    else:
                        version = (await self._push(dict(self.serving), version=None)).version
                    new = [GeneratorJoined(name) for name in self.serving if name not in self._announced]
                    self._announced.update(self.serving)
                    for name in self._names[self._recipe.rollout.first_replicas :]:
                        self._spawn(self._replace(name))
                    return [*new, WeightsLive(version)]
        return []

    async def _push(self, handles: dict[str, ActorHandle], version: int | None) -> PublishReport:
        async def push(trainer: Ranks, handles: dict[str, ActorHandle]) -> PublishReport:
            if version is not None and version < self._trainer.first:
                raise PushBroken(f"the trainer has gone on from version {self._trainer.first}")
            await self._connect(trainer, handles)
            # The replicas' own deadline speaks first, and names them.
            deadline_s = 2 * self._recipe.deadlines.publish_s
            what = "the live version" if version is None else f"version {version}"
            staged = await self._waiting(trainer.call("stage", version), "trainer", f"its copy of {what}", deadline_s)
            copies = [copy for _, copy in staged]
            publishing = trainer.call("publish", staged[0][0], copies)
            reports: list[PublishReport] = await self._waiting(publishing, "generators", what, deadline_s)
            if not self._trainer.sent(trainer, reports[0].version):
                # The next one does not know of it, and may send the version before to a generator that joins.
                raise PushBroken("the trainer was lost as it ended")
            self._versions.update(dict.fromkeys(handles, reports[0].version))
            await self._verify(handles, at_once=version is None or self._recipe.weights.verify)
            return replace(reports[0], num_bytes=sum(report.num_bytes for report in reports))

        return await self._attempt(handles, push)

    async def _verify(self, handles: dict[str, ActorHandle], at_once: bool) -> None:
        """Compare the generators that are to be compared with the trainer: at once, which those that serve nobody yet
        answer at once, or beside all else, for a busy one takes up the text when it comes to it."""
        names = self._verification.of(list(handles))
        if at_once:
            await asyncio.gather(*(self._compare(name, handles[name]) for name in names))
            return
        for name in set(names) - self._comparing:
            self._spawn(self._compare_beside(name, handles[name]))

    async def _compare(self, name: str, handle: ActorHandle) -> None:
        """Raises WeightMismatch."""
        scoring, deadline_s = handle.score_probe.remote(), self._recipe.deadlines.rollout_s
        version, logprobs = await self._waiting(scoring, name, "log-probs to verify its weights", deadline_s)
        gap = self._verification.compare(name, version, logprobs)
        if gap is not None:
            logger.info(
                "%s computes with version %d as the trainer does (%.2g nats a token, rounding)", name, version, gap
            )

    async def _compare_beside(self, name: str, handle: ActorHandle) -> None:
        self._comparing.add(name)
        try:
            await self._compare(name, handle)
        except (RayActorError, EngineDead, DeadlineExceeded) as error:
            self.lost(name, handle, error)
        finally:
            self._comparing.discard(name)

    async def verify_pending(self) -> None:
        """Compare those that could not be compared so far; for the end of a run, when they have nothing else to do."""
        handles = dict(self.serving)
        for name in self._verification.pending & handles.keys():
            try:
                await self._compare(name, handles[name])
            except (RayActorError, EngineDead) as error:
                logger.warning("the weights of %s are not verified: it is lost (%s)", name, reason(error))

    async def _attempt(
        self, handles: dict[str, ActorHandle], use: Callable[[Ranks, dict[str, ActorHandle]], Awaitable[T]]
    ) -> T:
        """Use the channel once. If that fails, ask everyone for a sign of life: PushBroken if someone was lost. Who is
        still in a transfer past its deadline is lost too: NCCL waits for ever for a peer that is gone."""
        serving = dict(self.serving)
        trainer = await self._trainer.ready()
        try:
            return await use(trainer, handles)
        except (RayError, RuntimeError) as error:
            self._connected = None
            late = isinstance(error, DeadlineExceeded)
            broken = (late or isinstance(error, RayActorError)) and not await self._trainer_answers(trainer, error)
            for name, handle in serving.items():
                broken |= self.serving.get(name) is not handle or not await self._answers(name, handle, late)
            if broken:
                raise PushBroken(reason(error)) from error
            raise
        except BaseException:
            self._connected = None
            raise

    async def _connect(self, trainer: Ranks, handles: dict[str, ActorHandle]) -> None:
        if self._connected == (trainer, handles):
            return
        deadline_s = self._recipe.deadlines.publish_s
        replicas = RayReplicas(handles, {name: self._starter.workers[name] for name in handles}, deadline_s)
        ends = await self._waiting(trainer.call("open_sender"), "trainer", "to open the weight channel", deadline_s)
        connecting = trainer.call("connect", replicas, ends)
        await self._waiting(connecting, "generators", "to join the weight channel", deadline_s)
        self._connected = (trainer, handles)

    async def _trainer_answers(self, trainer: Ranks, error: Exception) -> bool:
        """It does so from the thread of its pushes."""
        try:
            await self._waiting(trainer.call("ping"), "trainer", "a sign of life", self._recipe.deadlines.warn_s)
        except (RayActorError, DeadlineExceeded):
            self._trainer.lost(trainer, error)
            return False
        return True

    async def _answers(self, name: str, handle: ActorHandle, late: bool = False) -> bool:
        try:
            await self._waiting(handle.ping.remote(late), name, "a sign of life", self._recipe.deadlines.warn_s)
        except (RayActorError, EngineDead, DeadlineExceeded) as error:
            self.lost(name, handle, error)
            return False
        return True

    # -- the rest

    async def take_stats(self) -> list[dict[str, float]]:
        """Times and tokens of each generator since it was last asked. Who takes longer than a moment to answer holds
        nobody up: its answer is of the next call."""
        for name in self.serving.keys() - self._asked.keys():
            self._asked[name] = asyncio.ensure_future(self._ask_stats(name, self.serving[name]))
        if self._asked:
            await asyncio.wait(self._asked.values(), timeout=_STATS_S)
        answered = [name for name, asked in self._asked.items() if asked.done()]
        stats = [self._asked.pop(name).result() for name in answered]
        return [s for s in stats if s]

    def status(self, loads: Mapping[str, int]) -> list[dict[str, Any]]:
        """Of each generator, one that is being started too, what people want to know. `loads`: groups in flight."""
        return [{"name": name, **self._status(name, loads)} for name in self._names]

    def _status(self, name: str, loads: Mapping[str, int]) -> dict[str, Any]:
        if name not in self.serving or name not in self._versions:
            return {"state": "waiting for room" if name in self._starter.without_room else "starting"}
        stats = self._stats.get(name, {})
        seconds = {state: stats[state] for state in STATES if state in stats}
        total_s = sum(seconds.values())
        shares = {state: s / total_s for state, s in seconds.items()} if total_s else {}
        per_s = {"tokens_per_s": stats["tokens"] / total_s} if total_s else {}
        return {"state": "serving", "version": self._versions[name], "groups": loads.get(name, 0), **per_s, **shares}

    async def _ask_stats(self, name: str, handle: ActorHandle) -> dict[str, float] | None:
        try:
            deadline_s = self._recipe.deadlines.warn_s
            stats: dict[str, float]
            stats, spans = await self._waiting(handle.take_stats.remote(), name, "its statistics", deadline_s)
            self._trace.write(name, spans)
            self._stats[name] = stats
            return stats
        except (RayActorError, DeadlineExceeded) as error:
            self.lost(name, handle, error)
            return None

    async def close(self) -> None:
        await close(self._waiting, self.serving)


async def close(waiting: WaitingFor, serving: Mapping[str, ActorHandle]) -> None:
    """Stop the engines and the reward processes; a generator that does not answer is left to Ray's end."""
    closing = {name: handle.close.remote() for name, handle in serving.items()}
    for name, reference in closing.items():
        try:
            await waiting(reference, name, "to close", deadline_s=30.0)
        except Exception as error:
            logger.warning("%s did not close: %s", name, reason(error))
