"""The driver: the shell around the controller. Carries out its decisions on the actors, reports back what happened.

 data --task--> Start --> generator.run_group --------summary--> GroupFinished | GroupFiltered | GroupFailed
                                \\--frame--> buffer
                Train --> trainer.train(k) ---------------result--> StepDone
                Publish --> trainer.publish(v) --> generators ----> WeightsLive | PublishFailed

The loop waits for one event at a time; each of the calls above is a task of its own, with a deadline and an entry
in the waiting-for registry. Whoever ends puts its event in the inbox, and that unblocks the loop. Every event and
every decision is in the journal before it is acted on: a run resumes from there when its driver has died.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError

from asyncrl.buffer.records import ControlLog
from asyncrl.checkpoint import snapshots
from asyncrl.cluster.ray_cluster import own_processes
from asyncrl.control.controller import Controller
from asyncrl.control.messages import (
    Cancel,
    Decision,
    Discard,
    Event,
    GroupLost,
    Publish,
    PublishFailed,
    Start,
    StepDone,
    Train,
    WeightsLive,
)
from asyncrl.data.held_out import HeldOut
from asyncrl.data.mixture import Tasks
from asyncrl.data.prompts import BadPrompt
from asyncrl.errors import BudgetSpent, DeadlineExceeded, RunFailed
from asyncrl.observe import otel
from asyncrl.observe.trace import TraceFile
from asyncrl.orchestrator.actors import Actors
from asyncrl.orchestrator.budget import Budget
from asyncrl.orchestrator.buffer_link import BufferLink
from asyncrl.orchestrator.checkpoints import Checkpoints
from asyncrl.orchestrator.evaluations import Evaluations
from asyncrl.orchestrator.fleet import Fleet, PushBroken
from asyncrl.orchestrator.notices import Notices
from asyncrl.orchestrator.outcome import outcome
from asyncrl.orchestrator.overdue import Overdue
from asyncrl.orchestrator.recorder import Recorder
from asyncrl.orchestrator.recovery import Recovered
from asyncrl.orchestrator.rewards import RewardActors
from asyncrl.orchestrator.status import Status
from asyncrl.orchestrator.stop import Stop
from asyncrl.orchestrator.trainer_link import TrainerLink
from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.processes import stacks
from asyncrl.processes.orphans import ProcessTable
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.engine import EngineDead
from asyncrl.rollout.summary import GroupSummary, filtered
from asyncrl.terminal.live import LiveView
from asyncrl.verdicts import accuracy
from asyncrl.weights.verify import Verification

logger = logging.getLogger(__name__)


class Driver:
    """One run, from started actors to the last version live."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        actors: Actors,
        recovered: Recovered,
        tasks: Tasks,
        held_out: list[HeldOut],
        recorder: Recorder,
        view: LiveView,
    ) -> None:
        self.recipe = recipe
        self.run_dir = run_dir
        self.controller: Controller = recovered.controller
        self.tasks = tasks
        self.recorder = recorder
        self.view = view
        self.processes = ProcessTable(run_dir / "processes.json")
        self.processes.put("ray", own_processes())
        overdue = Overdue(run_dir, self.processes)
        self.waiting = WaitingFor(recipe.deadlines.warn_s, lambda role: overdue(role, self.waiting))
        self.inbox: asyncio.Queue[Event | BaseException | Stop | None] = asyncio.Queue()
        """None: an evaluation has ended."""
        self.journal = ControlLog(run_dir / "journal", self.controller.state())
        self.notices = Notices()
        self.buffer = self.notices.of("buffer", actors.buffer())
        self.groups = BufferLink(self.buffer, self.waiting, recipe.deadlines.start_s)
        self._sight = actors.sight
        every = recipe.checkpoint.snapshot_every_steps
        self.snapshots = (
            snapshots.create(recipe.checkpoint.snapshot_shards, recipe.deadlines.start_s) if every else None
        )
        self.trace = TraceFile(run_dir / "trace.json", otel.from_environment(run_dir.name))
        verification = Verification(recipe)
        self.trainer = TrainerLink(
            recipe,
            lambda: self.notices.of_ranks(actors.trainer(self.buffer)),
            lambda done, live, snapshots: self.checkpoints.origin(done, live, snapshots),
            self.snapshots,
            self.processes,
            self.waiting,
            self.trace,
            view,
            verification,
            trained=self.controller.steps_done,
            live=self.controller.live,
        )
        self.fleet = Fleet(
            recipe,
            lambda name: self.notices.of(name, actors.generator(name, self.buffer)),
            self.trainer,
            self.processes,
            self.waiting,
            self.inbox.put_nowait,
            self._spawn,
            self.trace,
            verification,
        )
        self.rewards = RewardActors(
            recipe, actors.reward_actors, self.notices, self.processes, self.waiting, self.inbox.put_nowait
        )
        self.evaluations = Evaluations(
            recipe,
            held_out,
            run_dir,
            self.waiting,
            lambda: self.fleet.serving,
            self.fleet.lost,
            recorder.evaluated,
            self.inbox.put_nowait,
        )
        self.checkpoints = Checkpoints(
            recipe,
            run_dir,
            self.journal,
            self.trainer,
            self.buffer,
            self.waiting,
            version=recovered.version,
            folder=recovered.checkpoint,
            batches=recovered.batches,
            post=self.inbox.put_nowait,
            awaited=self.evaluations.awaited,
        )
        self.budget = Budget(recipe)
        self.publishing = -1
        self.stopping: Stop | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """The main loop: decide, carry out, wait for the next event. Ends with a checkpoint of the last step done."""
        try:
            while not self._finished():
                if not self.stopping:
                    self._decide()
                if not self._calls and self.inbox.empty():
                    raise RunFailed(f"nothing is in flight, and nothing can be started: {self.controller.ledger}")
                event = await self.inbox.get()
                if isinstance(event, BudgetSpent) and self.trainer.serves:
                    event = Stop(str(event), failed=True)
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, Stop):
                    self.stopping = self.stopping or event
                elif event is None:
                    self.checkpoints.scored()
                else:
                    await self._handle(event)
            await self._save_last()
            await self.trainer.compare_export(self.checkpoints.folder)
            if self.stopping is None:
                await self.fleet.verify_pending()
        finally:
            for call in self._calls:
                call.cancel()
        if self.stopping is not None and self.stopping.failed:
            raise BudgetSpent(f"{self.stopping.why}; step {self.controller.steps_done} is saved")

    def status(self) -> Status:
        """Where the run stands, for people."""
        return {
            "phase": self.view.doing,
            "steps_done": self.controller.steps_done,
            "live": self.controller.live,
            "ledger": vars(self.controller.ledger),
            "waiting": self.waiting.oldest(3),
            "generators": self.fleet.status(self.controller.loads()),
            "warnings": self.recorder.warnings,
        }

    def _finished(self) -> bool:
        """Done; or told to stop, and no step is running."""
        if self.controller.finished and not self.evaluations.running:
            return True
        return self.stopping is not None and self.controller.training is None

    def _decide(self) -> None:
        decisions = self.controller.decide()
        self.journal.decisions(decisions)
        for decision in decisions:
            self._execute(decision)

    async def _handle(self, event: Event) -> None:
        self.controller.handle(event)
        if isinstance(event, StepDone):
            # The line first: what the journal calls done has its metrics.
            stats = await self.fleet.take_stats()
            serving, wanted = len(self.fleet.serving), self.recipe.rollout.replicas
            record = self.recorder.step(event.step, self.controller.ledger, stats, serving, wanted)
            self.view.step(record, self.recorder.sample)
        self.journal.event(event)
        if isinstance(event, StepDone):
            self.evaluations.step_done(event.step)
        if isinstance(event, WeightsLive):
            for evaluation in self.evaluations.live(event.version):
                self._spawn(evaluation)
            if self.controller.finished and self.evaluations.running:
                self.view.phase("completing the last evaluation")
        if isinstance(event, StepDone) and self.checkpoints.due(self.controller.steps_done):
            await self._checkpoint()

    # -- start-up

    async def start(self) -> None:
        """Start all actors side by side, resume what was in flight, connect the weight channel, make weights live."""
        fresh = self.controller.live < 0 and self.controller.steps_done == 0
        over = self.controller.steps_done >= self.recipe.max_steps and not self.evaluations.due(self.controller.live)
        replicas = self.recipe.rollout.first_replicas
        if not fresh:
            self.view.phase("taking up the groups in the journal")
        await self.groups.see(self._sight)
        await self._take_up()
        roles = "the trainer" if over or self.recipe.from_data else f"{replicas} generator(s) and the trainer"
        starting = self.view.phase(f"starting {roles}", total=1 if over else replicas + 1)

        def up(_: object) -> None:
            starting.done += 1

        self.trainer.start().add_done_callback(up)
        # Who cannot start says so while the others still load.
        await asyncio.gather(self.trainer.ready(), *([] if over else [self.fleet.start(up), self.rewards.start()]))
        if not over:
            await self._go_live(fresh)
        self.recorder.begin()
        if self.controller.training is not None:
            self._execute(self.controller.training)

    async def _take_up(self) -> None:
        """Tell the controller what the crash before this did to its groups; those that were committed count."""
        ready, running = self.controller.ready(), self.controller.running()
        leased = list(self.controller.training.groups) if self.controller.training else []
        held = await self.groups.holds(ready + running + leased)
        if missing := [key for key in leased if key not in held]:
            raise RunFailed(
                f"the journal lacks task {missing[0][0]} of the batch in flight; restore {self.run_dir}/journal"
            )
        for summary in await self.groups.summaries([key for key in running if key in held]):
            self.recorder.group(summary)
            await self._handle(self._outcome(summary))
        for task, attempt in ready:
            if (task, attempt) not in held:
                await self._handle(GroupLost(task, attempt))
        for event in self.controller.interrupt():
            await self._handle(event)
        for summary in await self.groups.summaries([key for key in ready + leased if key in held]):
            self.recorder.known(summary)

    async def _go_live(self, fresh: bool) -> None:
        self.view.phase("connecting the weight channel" if fresh else "sending the weights to the generators")
        for event in await self.fleet.first_push(fresh):
            await self._handle(event)

    # -- decisions

    def _execute(self, decision: Decision) -> None:
        match decision:
            case Start():
                self._spawn(self._run_group(decision))
            case Train():
                self.checkpoints.batches[decision.step] = decision
                self.recorder.batch_taken(decision)
                self._spawn(self._train(decision))
            case Publish():
                self.publishing = decision.version
                self._spawn(self._publish(decision.version))
            case Cancel():
                if handle := self.fleet.serving.get(decision.generator):
                    handle.cancel_group.remote(decision.task, decision.attempt)
            case Discard():
                self.recorder.forget([(decision.task, decision.attempt)])

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a call beside the loop; an error that it does not turn into an event ends the run."""

        def done(task: asyncio.Task[None]) -> None:
            self._calls.discard(task)
            if not task.cancelled() and (error := task.exception()):
                self.inbox.put_nowait(error)

        task = asyncio.create_task(coroutine)
        self._calls.add(task)
        task.add_done_callback(done)

    async def _run_group(self, start: Start) -> None:
        name = start.generator
        handle = self.fleet.serving.get(name)
        if handle is None:
            return
        began, deadline_s = asyncio.get_running_loop().time(), self.recipe.deadlines.rollout_s
        try:
            task = self.tasks.task(start.task)
            running = handle.run_group.remote(task, start.attempt)
            summary: GroupSummary = await self.waiting(running, name, f"task {start.task}", deadline_s)
        except BadPrompt as fault:
            summary = filtered(start.task, start.attempt, fault)
        except (RayActorError, EngineDead, DeadlineExceeded) as error:
            if not (isinstance(error, DeadlineExceeded) and self.fleet.has_finished_since(name, began)):
                self.fleet.lost(name, handle, error)
                return
            handle.cancel_group.remote(start.task, start.attempt)
            reason = f"not done in {deadline_s:g} s (deadlines.rollout_s), while {name} finishes others"
            summary = GroupSummary(start.task, start.attempt, "failed", reason)
        if summary.outcome == "finished":
            self.fleet.finished_group(name)
        self.recorder.group(summary)
        self.inbox.put_nowait(self._outcome(summary))
        self.budget.group(summary)

    def _outcome(self, summary: GroupSummary) -> Event:
        rate = accuracy(summary.rewards, summary.extras)
        return outcome(summary, self.tasks.skipped_after(summary.task, rate))

    async def _train(self, train: Train) -> None:
        result = await self.trainer.train(train, lambda: self.publishing)
        self.recorder.trained(train, result)
        self.inbox.put_nowait(StepDone(train.step))
        self.budget.step(result.report)

    async def _publish(self, version: int) -> None:
        try:
            # What the generators get to see must be in the journal for good.
            await asyncio.to_thread(self.journal.sync)
            await self.evaluations.before_push(version)
            report = await self.fleet.publish(version)
        except PushBroken as error:
            logger.warning("the push of version %d failed (%s); it is tried again", version, error)
            self.inbox.put_nowait(PublishFailed(version))
        else:
            self.recorder.published(report)
            self.inbox.put_nowait(WeightsLive(version))
        finally:
            # A generator that joined may have made it live already, and then the next push is in flight.
            if self.publishing == version:
                self.publishing = -1

    # -- ends

    async def _checkpoint(self) -> None:
        saving = self.view.during(f"saving checkpoint {self.controller.steps_done}")
        with saving, self.recorder.checkpointing():
            await self.checkpoints.begin(self.controller, self.recorder.last)

    async def _save_last(self) -> None:
        """A checkpoint of the last step done, however often the trainer is lost meanwhile."""
        self.view.phase("completing the last checkpoint")
        await self.checkpoints.wait()
        self.checkpoints.scored()
        while self.checkpoints.version < self.controller.steps_done:
            await self._checkpoint()
            await self.checkpoints.wait()

    async def close(self) -> None:
        """Stop the engines and the reward processes."""
        await self.fleet.close()
        await self.rewards.close()
        await self.notices.last()
        self.journal.close()
        await asyncio.to_thread(self.trace.close)
        await self.trainer.close()
        stacks.tidy(self.run_dir / "stacks")
