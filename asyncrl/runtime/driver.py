"""The driver: the shell around the controller. Carries out its decisions on the actors, reports back what happened.

 data --task--> Start --> generator.run_group --------summary--> GroupFinished | GroupFiltered | GroupFailed
                                \\--frame--> buffer
                Train --> trainer.train(k) ---------------result--> StepDone
                Publish --> trainer.publish(v) --> generators ----> WeightsLive | PublishFailed

The loop waits for one event at a time; each of the calls above is a task of its own, with a deadline and an entry
in the waiting-for registry. Whoever ends puts its event in the inbox, and that unblocks the loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from asyncrl.checkpoint import atomic
from asyncrl.control.controller import Controller
from asyncrl.control.messages import (
    Cancel,
    Decision,
    Discard,
    Event,
    GeneratorJoined,
    GeneratorLost,
    GroupFailed,
    GroupFiltered,
    GroupFinished,
    Publish,
    PublishFailed,
    Start,
    StepDone,
    Train,
    WeightsLive,
)
from asyncrl.data.tasks import TaskSource
from asyncrl.errors import RunFailed
from asyncrl.observe.live import LiveView
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.engine import EngineDead
from asyncrl.rollout.generator import GroupSummary
from asyncrl.runtime.actors import Actors
from asyncrl.runtime.buffer import Key
from asyncrl.runtime.recorder import Recorder
from asyncrl.runtime.replicas import RayReplicas
from asyncrl.runtime.waiting import WaitingFor

logger = logging.getLogger(__name__)

_MAX_FAILED_IN_A_ROW = 16


class Driver:
    """One run, from started actors to the last version live."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        actors: Actors,
        controller: Controller,
        tasks: TaskSource,
        recorder: Recorder,
        view: LiveView,
    ) -> None:
        self.recipe = recipe
        self.run_dir = run_dir
        self.actors = actors
        self.controller = controller
        self.tasks = tasks
        self.recorder = recorder
        self.view = view
        self.waiting = WaitingFor(recipe.deadlines.warn_s)
        self.inbox: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        self.alive = dict(actors.generators)
        self.workers: dict[str, int] = {}
        self.connected: set[str] = set()
        self.publishing = -1
        self._failed_in_a_row = 0
        self._trained_keys: list[Key] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """The main loop: decide, carry out, wait for the next event."""
        try:
            while not self.controller.finished:
                for decision in self.controller.decide():
                    self._execute(decision)
                self.view.state(vars(self.controller.ledger), self.waiting.oldest(3))
                if not self._calls and self.inbox.empty():
                    raise RunFailed(f"nothing is under way, and nothing can be started: {self.controller.ledger}")
                event = await self.inbox.get()
                if isinstance(event, BaseException):
                    raise event
                self.controller.handle(event)
                if isinstance(event, StepDone):
                    await self._step_done(event.step)
        finally:
            for call in self._calls:
                call.cancel()

    # -- start-up

    async def start(self, checkpoint: Path | None, version: int) -> None:
        """Start all actors side by side, connect the weight channel, make `version` live."""
        deadline_s = self.recipe.deadlines.start_s
        self.view.phase(f"starting {len(self.alive)} generator(s) and the trainer")
        starts = {name: handle.start.remote() for name, handle in self.alive.items()}
        trainer = self.actors.trainer.start.remote(checkpoint, version)
        await self.waiting(trainer, "trainer", "to load the model", deadline_s)
        for name, reference in starts.items():
            started = await self.waiting(reference, name, "to load the model", deadline_s)
            self.workers[name] = started["num_workers"]
        self.view.phase("connecting the weight channel")
        await self._connect()
        if checkpoint is not None:
            self.view.phase(f"sending version {version} to the generators")
            await self.waiting(
                self.actors.trainer.publish.remote(version), "generators", f"version {version}", deadline_s
            )
        for name in self.alive:
            self.controller.handle(GeneratorJoined(name))
        self.controller.handle(WeightsLive(version))
        self.recorder.begin()

    async def _connect(self) -> None:
        deadline_s = self.recipe.deadlines.publish_s
        replicas = RayReplicas(dict(self.alive), {n: self.workers[n] for n in self.alive}, deadline_s)
        address = await self.waiting(self.actors.trainer.address.remote(), "trainer", "its address", deadline_s)
        connecting = self.actors.trainer.connect.remote(replicas, address)
        await self.waiting(connecting, "trainer", "to connect the weight channel", deadline_s)
        self.connected = set(self.alive)

    # -- decisions

    def _execute(self, decision: Decision) -> None:
        match decision:
            case Start():
                self._spawn(self._run_group(decision))
            case Train():
                self.recorder.batch_taken(decision)
                self._spawn(self._train(decision))
            case Publish():
                self.publishing = decision.version
                self._spawn(self._publish(decision.version))
            case Cancel():
                if handle := self.alive.get(decision.generator):
                    handle.cancel_group.remote(decision.task, decision.attempt)
            case Discard():
                self._drop([(decision.task, decision.attempt)])

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a call beside the loop; an error that it does not turn into an event ends the run."""

        def done(task: asyncio.Task[None]) -> None:
            self._calls.discard(task)
            if not task.cancelled() and (error := task.exception()):
                self.inbox.put_nowait(error)

        task = asyncio.create_task(coroutine)
        self._calls.add(task)
        task.add_done_callback(done)

    def _drop(self, keys: list[Key]) -> None:
        self.recorder.forget(keys)
        self.actors.buffer.drop.remote(keys)

    async def _run_group(self, start: Start) -> None:
        handle = self.alive.get(start.generator)
        if handle is None:
            return
        try:
            summary: GroupSummary = await self.waiting(
                handle.run_group.remote(self.tasks.task(start.task), start.attempt),
                start.generator,
                f"task {start.task}",
                self.recipe.deadlines.rollout_s,
            )
        except (RayActorError, EngineDead) as error:
            self._generator_lost(start.generator, error)
            return
        self.recorder.group(summary)
        self._check_failures(summary)
        key = (summary.task, summary.attempt)
        if summary.outcome == "finished":
            versions = (summary.oldest_version, summary.newest_version)
            self.inbox.put_nowait(GroupFinished(*key, *versions, summary.num_tokens))
        elif summary.outcome == "filtered":
            self.inbox.put_nowait(GroupFiltered(*key, summary.reason))
        elif summary.outcome == "aborted":
            # Cancelled by a decision, it is obsolete and the controller ignores this; by the engine, it has failed.
            self.inbox.put_nowait(GroupFailed(*key, "aborted"))
        else:
            logger.warning("task %d failed: %s %s", summary.task, summary.reason, "; ".join(summary.errors[:1]))
            self.inbox.put_nowait(GroupFailed(*key, summary.reason))

    def _generator_lost(self, name: str, error: Exception) -> None:
        if self.alive.pop(name, None) is None:
            return
        reason = str(error).strip().splitlines()[-1]
        logger.warning("%s is lost (%s); its tasks start again elsewhere", name, reason)
        ray.kill(self.actors.generators[name])
        self.inbox.put_nowait(GeneratorLost(name))
        if not self.alive:
            self.inbox.put_nowait(
                RunFailed(f"all generators are lost; `asyncrl resume {self.run_dir}` goes on from the checkpoint")
            )

    def _check_failures(self, summary: GroupSummary) -> None:
        """A run in which nothing succeeds any more must stop, not draw tasks for ever."""
        self._failed_in_a_row = self._failed_in_a_row + 1 if summary.outcome == "failed" else 0
        limit = max(_MAX_FAILED_IN_A_ROW, self.recipe.groups_per_step)
        if self._failed_in_a_row >= limit:
            reason = "; ".join([summary.reason, *summary.errors[:1]])
            self.inbox.put_nowait(RunFailed(f"the last {limit} groups failed, the last of them with {reason}"))

    async def _train(self, train: Train) -> None:
        reference = self.actors.trainer.train.remote(train.step, list(train.groups), train.min_version, self.publishing)
        result = await self.waiting(reference, "trainer", f"step {train.step}", self.recipe.deadlines.step_s)
        self.recorder.trained(train, result)
        self._trained_keys = list(train.groups)
        self.inbox.put_nowait(StepDone(train.step))

    async def _publish(self, version: int) -> None:
        try:
            if self.connected != set(self.alive):
                await self._connect()
            reference = self.actors.trainer.publish.remote(version)
            deadline_s = 2 * self.recipe.deadlines.publish_s  # the replicas' own deadline speaks first, and names them
            report = await self.waiting(reference, "generators", f"version {version}", deadline_s)
        except (ray.exceptions.RayError, RuntimeError):
            lost = await self._find_lost()
            if not lost:
                raise
            logger.warning("push of version %d failed with %s lost; trying again", version, ", ".join(lost))
            self.connected = set()
            self.inbox.put_nowait(PublishFailed(version))
            return
        self.recorder.published(report)
        self.inbox.put_nowait(WeightsLive(version))

    async def _find_lost(self) -> list[str]:
        """Ask each generator for a sign of life; those that are dead are reported lost."""
        lost = [name for name in self.connected if name not in self.alive]
        for name, handle in list(self.alive.items()):
            try:
                await self.waiting(handle.ping.remote(), name, "a sign of life", self.recipe.deadlines.warn_s)
            except RayActorError as error:
                self._generator_lost(name, error)
                lost.append(name)
        return lost

    async def close(self) -> None:
        """Stop the engines and the reward processes; a generator that does not answer is left to Ray's end."""
        closing = [handle.close.remote() for handle in self.alive.values()]
        for name, reference in zip(self.alive, closing, strict=True):
            try:
                await self.waiting(reference, name, "to close", deadline_s=30.0)
            except Exception as error:
                logger.warning("%s did not close: %s", name, error)

    # -- after a step

    async def _step_done(self, step: int) -> None:
        stats = await asyncio.gather(*(self._stats(n, h) for n, h in list(self.alive.items())))
        keys = self._trained_keys
        every = self.recipe.checkpoint.every_steps
        last = step + 1 == self.recipe.max_steps
        if last or (every and (step + 1) % every == 0):
            await self._checkpoint(step + 1)
        record = self.recorder.step(step, self.controller.ledger, [s for s in stats if s])
        self.view.step(record)
        self._drop(keys)

    async def _stats(self, name: str, handle: Any) -> dict[str, float] | None:
        try:
            deadline_s = self.recipe.deadlines.warn_s
            return await self.waiting(handle.take_stats.remote(), name, "its statistics", deadline_s)
        except RayActorError as error:
            self._generator_lost(name, error)
            return None

    async def _checkpoint(self, steps_done: int) -> None:
        """Save between two steps: the trainer stands still, the generators go on."""
        began = time.perf_counter()
        self.view.phase(f"saving checkpoint {steps_done}")
        state = {"steps_done": steps_done, "controller": self.controller.state(), **self.recorder.state()}
        root = self.run_dir / "checkpoints"
        part = atomic.begin(root, steps_done)
        saving = self.actors.trainer.save.remote(part)
        await self.waiting(saving, "trainer", f"checkpoint {steps_done}", self.recipe.deadlines.checkpoint_s)
        (part / "control.json").write_text(json.dumps(state))
        await asyncio.to_thread(atomic.commit, part)
        atomic.prune(root, self.recipe.checkpoint.keep_last)
        self.recorder.checkpointed(time.perf_counter() - began)
