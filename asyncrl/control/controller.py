"""The state machine: events in, decisions out. I1 (bounded staleness) and I2 (conservation) are kept here.

What each decision waits for, and who unblocks it:

    Start    a free slot, a generator, live weights    weights live · group filtered or failed; finished, if a generator
                                                       has its `groups_per_replica`
    Train    the step before, P selectable groups      step done · group finished
    Publish  the publish before, a generator           weights live · publish failed · generator joined

and a generator that joins unblocks the first and the last. No wait is circular: a slot is held by a group that
runs, is ready (and waits for those that run), is leased (to a step) or trained (its weights go live).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, assert_never, cast

from asyncrl.control import staleness
from asyncrl.control.codec import from_json, to_json
from asyncrl.control.fixed_lag import all_generated, batch_to_fill
from asyncrl.control.ledger import Ledger
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
    GroupLost,
    Publish,
    PublishFailed,
    Start,
    StepDone,
    Train,
    WeightsLive,
)
from asyncrl.control.routing import Router
from asyncrl.control.settings import FIXED_LAG, Settings
from asyncrl.control.tasks import Task, Tasks
from asyncrl.errors import UserError


class Controller:
    """Give it every event with `handle`, and carry out what `decide` returns, in that order.

    Events of an attempt that is no longer running are ignored; if its bytes lie in the buffer, they are
    discarded. An event that cannot happen (a step that was not decided, a version that does not exist) raises
    ValueError: a bug in the driver.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tasks = Tasks()
        self._router = Router(settings.tokens_per_group, settings.groups_per_replica)
        self._steps_done = 0
        self._live = -1
        self._publishing: int | None = None
        self._training: Train | None = None
        self._discards: list[Decision] = []

    @property
    def ledger(self) -> Ledger:
        """Counts of I2, at this instant."""
        return self._tasks.ledger()

    @property
    def next_draw(self) -> int:
        """The data cursor: every number below was drawn or skipped."""
        return self._tasks.next_number

    @property
    def num_to_skip(self) -> int:
        """Draws to come that are left out."""
        return self._tasks.num_to_skip

    @property
    def worst_case_staleness(self) -> int:
        """Largest age that a trained token can have, in updates."""
        return staleness.worst_case(self._settings)

    @property
    def finished(self) -> bool:
        """All steps are done, and the last version is live or there is no generator to send it to."""
        done = self._steps_done >= self._settings.max_steps
        return done and (self._live >= self._steps_done or not self._router)

    @property
    def steps_done(self) -> int:
        """Number of steps done, which is the newest version."""
        return self._steps_done

    @property
    def live(self) -> int:
        """Newest version that every serving generator holds; -1 before the first."""
        return self._live

    @property
    def training(self) -> Train | None:
        """The batch that is leased."""
        return self._training

    def attempts(self) -> dict[int, int]:
        """The current attempt of every task in flight."""
        return {task.number: task.attempt for task in self._tasks.under_way()}

    def ready(self) -> list[tuple[int, int]]:
        """(task, attempt) of finished groups that no batch has taken yet."""
        return [(task.number, task.attempt) for task in self._tasks.ready.values()]

    def running(self) -> list[tuple[int, int]]:
        """(task, attempt) of groups that some generator works on."""
        return [(task.number, task.attempt) for task in self._tasks.running.values()]

    def loads(self) -> dict[str, int]:
        """Number of groups that each generator that serves works on."""
        groups = self._tasks.on_generators()
        return {generator: groups[generator] for generator in self._router.alive}

    # -- events

    def handle(self, event: Event) -> None:
        match event:
            case GeneratorJoined():
                self._router.join(event.generator)
            case GeneratorLost():
                self._generator_lost(event.generator)
            case GroupFinished():
                self._group_finished(event)
            case GroupFiltered() | GroupFailed():
                if (task := self._tasks.attempt_running(event.task, event.attempt)) is not None:
                    self._router.remove(task.generator, task.num_tokens)
                    end = self._tasks.filter if isinstance(event, GroupFiltered) else self._tasks.fail
                    end(task, event.reason)
                    self._tasks.skip(event.skip if isinstance(event, GroupFiltered) else ())
            case GroupLost():
                task = self._tasks.ready.get(event.task)
                if task is not None and task.attempt == event.attempt:
                    self._tasks.requeue(task, stale=False)
            case StepDone():
                if event.step != self._steps_done or not self._tasks.leased:
                    raise ValueError(f"step {event.step} is reported done, but it is not being trained")
                self._tasks.train()
                self._training = None
                self._steps_done += 1
            case WeightsLive():
                self._weights_live(event.version)
            case PublishFailed():
                # One that a generator which joined has made live meanwhile is not in flight any more.
                if event.version != self._publishing and event.version > self._live:
                    raise ValueError(f"publish of version {event.version} is reported failed, but not in flight")
                if event.version == self._publishing:
                    self._publishing = None
            case _:
                assert_never(event)

    def _generator_lost(self, generator: str) -> None:
        self._router.lose(generator)
        for task in [task for task in self._tasks.running.values() if task.generator == generator]:
            self._tasks.requeue(task, stale=False)

    def _group_finished(self, event: GroupFinished) -> None:
        if (task := self._tasks.attempt_running(event.task, event.attempt)) is None:
            if not self._tasks.attempt_finished(event.task, event.attempt):
                self._discards.append(Discard(event.task, event.attempt))
            return
        if not 0 <= event.oldest_version <= event.newest_version <= self._steps_done:
            raise ValueError(
                f"group {event.task} has versions {event.oldest_version} to {event.newest_version}, but only "
                f"0 to {self._steps_done} exist; report a group without trainable tokens as GroupFiltered"
            )
        self._router.remove(task.generator, task.num_tokens)
        self._router.observe(event.num_tokens)
        self._tasks.finish(task, event.oldest_version, event.newest_version, event.num_tokens)
        self._tasks.skip(event.skip)
        if self._stale([task]):
            self._discards.append(self._give_up(task))

    def _weights_live(self, version: int) -> None:
        least = self._live if self._live >= 0 else self._steps_done
        if not least <= version <= self._steps_done:
            raise ValueError(f"version {version} is reported live, but only {least} to {self._steps_done} can be now")
        self._live = version
        if self._publishing is not None and self._live >= self._publishing:
            self._publishing = None

    # -- decisions

    def decide(self) -> list[Decision]:
        """Everything that can be decided now; a second call at once returns nothing.

        Starts come before the publish, so that no start waits for it.
        """
        decisions, self._discards = self._discards, []
        decisions += self._train()
        decisions += self._starts()
        decisions += self._publish()
        return decisions

    @property
    def _next_step(self) -> int:
        """The next batch to be taken."""
        return self._steps_done + bool(self._tasks.leased)

    @property
    def _min_version(self) -> int:
        """Oldest version that the next batch may train."""
        return self._next_step - self.worst_case_staleness

    def _stale(self, tasks: Iterable[Task]) -> list[Task]:
        """Those of the finished tasks that are too old for the next batch."""
        least, settings = self._min_version, self._settings
        return [t for t in tasks if not staleness.usable(t.oldest_version, t.newest_version, least, settings)]

    def _give_up(self, task: Task) -> Decision:
        decision: Decision = Discard(task.number, task.attempt)
        if task.number in self._tasks.running:
            decision = Cancel(task.number, task.attempt, task.generator)
            self._router.remove(task.generator, task.num_tokens)
        self._tasks.requeue(task, stale=True)
        return decision

    def _train(self) -> list[Decision]:
        if not (batch := self._select()):
            return []
        # In the order of their draw: a task that had to start again must not change a sum's order.
        groups = tuple(sorted((task.number, task.attempt) for task in batch))
        self._training = Train(self._next_step, groups, self._min_version)
        decisions: list[Decision] = [self._training]
        self._tasks.lease(batch)
        # From here on `_min_version` is that of the batch after: what is too old for it is given up at once.
        if self._settings.on_stale == "drop":
            # A lower bound: one still queued in its engine may be younger, but loses nothing by a new start.
            least = self._min_version
            too_old = [t for t in self._tasks.running.values() if t.start_version < least]
            decisions += [self._give_up(task) for task in too_old]
        return decisions + [self._give_up(task) for task in self._stale(self._tasks.ready.values())]

    def _select(self) -> Sequence[Task]:
        """The next batch; empty if it cannot be taken yet."""
        size = self._settings.groups_per_step
        if self._tasks.leased or len(self._tasks.ready) < size or not self._may_train():
            return []
        if self._fixed_lag:
            if self._tasks.ready_in_batch[self._next_step] < size:
                return []
            return [task for task in self._tasks.ready_below(None) if task.batch == self._next_step][:size]
        oldest_running = next((task.sequence for task in self._tasks.running.values()), None)
        ready = self._tasks.ready_below(staleness.selectable_below(oldest_running, self._settings))
        return ready[:size] if len(ready) >= size else []

    @property
    def _fixed_lag(self) -> bool:
        return self._settings.policy in FIXED_LAG

    def _may_train(self) -> bool:
        """Fixed lag: whether the version to be trained is out, or can be sent now; else the trainer ran ahead."""
        version = self._steps_done
        if not self._fixed_lag or not self._router or self._live >= version or self._publishing == version:
            return True
        return self._publishing is None and not self._held_back()

    def _starts(self) -> list[Decision]:
        decisions: list[Decision] = []
        # Too old for the next batch from the start, a group would be given up again.
        young = self._live >= max(0, self._min_version)
        while young and self._router and self._num_slots_held < staleness.slots(self._settings):
            generator = self._router.pick()
            if generator is None:
                break
            task = next(iter(self._tasks.waiting.values()), None) or self._draw()
            if task is None:
                break
            self._router.add(generator, task.num_tokens)
            self._tasks.start(task, generator, self._live)
            decisions.append(Start(task.number, task.attempt, generator))
        return decisions

    @property
    def _num_slots_held(self) -> int:
        """Waiting tasks are not counted, since they come before any new one."""
        return self._tasks.num_started + (self._steps_done - self._live) * self._settings.groups_per_step

    def _draw(self) -> Task | None:
        """A new task, or None if no more are needed."""
        size, batch = self._settings.groups_per_step, None
        if self._tasks.num_trained + self._tasks.num_under_way >= self._settings.max_steps * size:
            return None
        if self._fixed_lag:
            batch = batch_to_fill(self._tasks.in_batch, self._next_step, size)
        return self._tasks.draw(batch)

    def _publish(self) -> list[Decision]:
        version = self._steps_done
        ahead = version - self._live
        due = ahead >= self._settings.push_lag or (ahead > 0 and version >= self._settings.max_steps)
        if not due or self._live < 0 or self._publishing is not None or not self._router or self._held_back():
            return []
        self._publishing = version
        return [Publish(version)]

    def _held_back(self) -> bool:
        """Fixed lag: whether a batch that belongs to the live version is still to be generated."""
        if not self._fixed_lag:
            return False
        size, end = self._settings.groups_per_step, int(self._live + self._settings.max_staleness) + 1
        batches = range(self._next_step, min(end, self._settings.max_steps))
        return not all_generated(self._tasks.ready_in_batch, batches, size)

    # -- to and from the journal

    def state(self) -> dict[str, Any]:
        """Everything, JSON-able. Call it when nothing is left to decide, or right after an event.

        Raises LedgerError if the counts do not balance.
        """
        self.ledger.check()
        return {
            "settings": asdict(self._settings),
            "steps_done": self._steps_done,
            "live": self._live,
            "publishing": self._publishing,
            "training": to_json(self._training) if self._training else None,
            "discards": [to_json(decision) for decision in self._discards],
            "router": self._router.state(),
            "tasks": self._tasks.state(),
        }

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Controller:
        """Inverse of `state`, bit for bit."""
        settings = Settings(**state["settings"])
        controller = cls(settings)
        controller._tasks = Tasks.restore(state["tasks"])
        num_groups = controller._tasks.on_generators()
        controller._router = Router.restore(
            settings.tokens_per_group, state["router"], num_groups, settings.groups_per_replica
        )
        controller._steps_done, controller._live = state["steps_done"], state["live"]
        controller._publishing = state["publishing"]
        controller._training = cast(Train, from_json(state["training"])) if state["training"] else None
        controller._discards = [cast(Decision, from_json(decision)) for decision in state["discards"]]
        return controller

    def change(self, settings: Settings) -> None:
        """Go on under other settings. Ready groups that are too old for them are given up.

        Raises UserError if they cannot continue the run.
        """
        # Under a fixed lag, later batches would keep the slots that an earlier one still needs.
        for key in ("groups_per_step", "policy", *(["max_staleness"] if self._fixed_lag else [])):
            if getattr(settings, key) != getattr(self._settings, key):
                raise UserError(
                    f"{key} is {getattr(settings, key)}, but the run was started with "
                    f"{getattr(self._settings, key)}; set {key}={getattr(self._settings, key)} to resume it"
                )
        needed = self._tasks.num_trained + self._tasks.num_under_way
        if needed > settings.max_steps * settings.groups_per_step:
            least = -(-needed // settings.groups_per_step)
            raise UserError(
                f"max_steps is {settings.max_steps}, but the run has drawn tasks for {least} steps; "
                f"set max_steps to at least {least} to resume it"
            )
        self._settings = settings
        self._router.limit(settings.groups_per_replica)
        self._discards += [self._give_up(task) for task in self._stale(self._tasks.ready.values())]

    def interrupt(self) -> list[Event]:
        """The events that say what a crash of everything around the controller did; give each to `handle`."""
        events: list[Event] = [GeneratorLost(generator) for generator in self._router.alive]
        if self._publishing is not None:
            events.append(PublishFailed(self._publishing))
        return events
