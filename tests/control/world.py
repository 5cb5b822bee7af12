"""A driver, generators and a trainer that check every decision of a controller against a model of their own."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import asdict, dataclass
from fractions import Fraction

from asyncrl.control.controller import Controller
from asyncrl.control.history import Decisions, Entry, Snapshot, replay
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
from asyncrl.control.settings import Settings


def as_json(state: dict) -> dict:
    """As it comes back from a file."""
    return json.loads(json.dumps(state))


@dataclass
class Attempt:
    number: int
    generator: str
    start_version: int
    sequence: int
    versions: tuple[int, int] = (-1, -1)


class World:
    """Methods are what can happen; each hands the event to the controller and carries out its decisions."""

    def __init__(self, settings: Settings, controller: Controller | None = None) -> None:
        self.settings = settings
        self.controller = controller or Controller(settings)
        self.generators: set[str] = set()
        self.waiting: dict[int, int] = {}
        """Task: attempt that comes next."""
        self.running: dict[int, Attempt] = {}
        self.ready: dict[int, Attempt] = {}
        self.leased: dict[int, Attempt] = {}
        self.trained: dict[int, int] = {}
        """Task: step."""
        self.buffer: set[tuple[int, int]] = set()
        self.counts = Counter()
        self.reasons = {"filtered": Counter(), "failed": Counter()}
        self.drawn = self.num_starts = self.steps_done = 0
        self.live = self.newest_sent = -1
        self.lives: list[int] = []
        self.publishing: int | None = None
        self.known_tokens: dict[int, int] = {}
        self.num_finished = self.finished_tokens = 0
        self.ages: list[int] = []
        """Largest age of each batch trained."""
        self.lost_bytes = self.changed = self.lengthened = False
        self.most_held = 0
        self.history: list[Entry] = [Snapshot(as_json(self.controller.state()))]
        """What a journal would hold."""

    # -- what can happen

    def join(self, generator: str) -> None:
        self.generators.add(generator)
        self.send(GeneratorJoined(generator))

    def lose(self, generator: str, *, decide: bool = True) -> None:
        self.generators.discard(generator)
        for task, attempt in list(self.running.items()):
            if attempt.generator == generator:
                self._requeue(task, self.running)
        self.send(GeneratorLost(generator), decide=decide)

    def versions_of(self, task: int) -> tuple[int, int]:
        """The range in which a token of this running group may lie."""
        return self.running[task].start_version, self.newest_sent

    def finish(self, task: int, oldest: int, newest: int, num_tokens: int = 10, *, decide: bool = True) -> None:
        attempt = self.ready[task] = self.running.pop(task)
        attempt.versions = oldest, newest
        self.buffer.add((task, attempt.number))
        self.known_tokens[task] = num_tokens
        self.num_finished += 1
        self.finished_tokens += num_tokens
        if not self._usable(attempt):
            self._give_up(task)
        self.send(GroupFinished(task, attempt.number, oldest, newest, num_tokens), decide=decide)

    def drop(self, task: int, event: type[GroupFiltered] | type[GroupFailed], reason: str) -> None:
        attempt = self.running.pop(task)
        self.reasons["filtered" if event is GroupFiltered else "failed"][reason] += 1
        self.send(event(task, attempt.number, reason))

    def report_obsolete(self, task: int, attempt: int, kind: type[Event]) -> None:
        """An attempt that is not the current one reports its end after all."""
        if kind is GroupFinished:
            self.buffer.add((task, attempt))
            self.send(GroupFinished(task, attempt, 0, 0, 10))
            assert (task, attempt) not in self.buffer
        else:
            self.send(kind(task, attempt, "late"))

    def step_done(self) -> None:
        for task, attempt in self.leased.items():
            self.trained[task] = self.steps_done
            self.buffer.remove((task, attempt.number))
        self.leased.clear()
        self.steps_done += 1
        self.send(StepDone(self.steps_done - 1))

    def push_first(self) -> None:
        """What the driver does at start-up."""
        self.newest_sent = self.steps_done
        self._go_live(self.steps_done)

    def weights_live(self) -> None:
        version, self.publishing = self.publishing, None
        self._go_live(version)

    def publish_failed(self) -> None:
        version, self.publishing = self.publishing, None
        self.send(PublishFailed(version))

    def crash(self, committed: int = 0, lost: int = 0, settings: Settings | None = None) -> None:
        """All processes die. The controller comes back from its history, is given new settings if there are any, and
        is told what the crash did: `committed` running groups had been finished without anyone hearing of it, the
        bytes of `lost` ready ones are gone."""
        before = as_json(self.controller.state())
        self.controller = replay(self.history)
        assert as_json(self.controller.state()) == before
        if settings is not None:
            self._change(settings)
        self.history.append(Snapshot(as_json(self.controller.state())))
        for task in list(self.running)[:committed]:
            self.finish(task, *self.versions_of(task), decide=False)
        for task, _ in self.controller.ready()[:lost]:
            number = self.ready[task].number
            self.lost_bytes = True
            self.buffer.remove((task, number))
            self._requeue(task, self.ready)
            self.send(GroupLost(task, number), decide=False)
        for event in self.controller.interrupt():
            if isinstance(event, GeneratorLost):
                self.lose(event.generator, decide=False)
            else:
                self.publishing = None
                self.send(event, decide=False)
        assert not self.generators
        assert not self.running
        self._carry_out()

    # -- the model

    def _change(self, settings: Settings) -> None:
        self.controller.change(settings)
        self.lengthened |= settings.max_steps > self.settings.max_steps
        self.settings, self.changed = settings, True
        for task, number in [(task, a.number) for task, a in self.ready.items()]:
            if (task, number) not in self.controller.ready():
                assert not self._usable(self.ready[task])
                self._give_up(task)

    def _give_up(self, task: int) -> None:
        self._requeue(task, self.ready)
        self.counts["stale"] += 1

    def _usable(self, attempt: Attempt) -> bool:
        return attempt.versions[self.settings.on_stale == "mask"] >= self._next_step - self._bound()

    def send(self, event: Event, *, decide: bool = True) -> None:
        self.history.append(event)
        self.controller.handle(event)
        if decide:
            self._carry_out()

    def _go_live(self, version: int) -> None:
        self.live = version
        self.lives.append(version)
        self.send(WeightsLive(version))

    def _requeue(self, task: int, table: dict[int, Attempt]) -> None:
        self.waiting[task] = table.pop(task).number + 1
        self.counts["requeued"] += 1

    def _carry_out(self) -> None:
        kinds = []
        decisions = self.controller.decide()
        if decisions:
            self.history.append(Decisions(tuple(decisions)))
        for decision in decisions:
            kinds.append(type(decision))
            self._apply(decision)
        assert Publish not in kinds[:-1], "starts would wait for it"
        assert self.controller.decide() == []
        if Train in kinds and self.settings.policy in ("one_step", "stale_k") and self.generators:
            assert self.newest_sent >= self.steps_done, "the trainer ran ahead"
        self._check()

    def _apply(self, decision: Decision) -> None:
        match decision:
            case Start(task, attempt, generator):
                assert self.live >= max(0, self._next_step - self._bound()), "it would be given up again"
                loads = {name: self._outstanding_tokens(name) for name in self._with_room()}
                assert loads[generator] <= min(loads.values()) + 1e-6, loads
                if self.waiting:
                    assert task == next(iter(self.waiting)), "requeued tasks come first, in their order"
                    assert attempt == self.waiting.pop(task)
                else:
                    assert (task, attempt) == (self.drawn, 0)
                    self.drawn += 1
                self.running[task] = Attempt(attempt, generator, self.live, self.num_starts)
                self.num_starts += 1
            case Cancel(task, attempt, generator):
                assert self.settings.on_stale == "drop"
                running = self.running[task]
                assert (running.number, running.generator) == (attempt, generator)
                assert running.start_version < self.steps_done + 1 - self._bound()
                self._requeue(task, self.running)
                self.counts["stale"] += 1
            case Discard(task, attempt):
                self.buffer.remove((task, attempt))
                if task in self.ready and self.ready[task].number == attempt:
                    assert not self._usable(self.ready[task]), "it was usable"
                    self._give_up(task)
            case Train():
                self._apply_train(decision)
            case Publish(version):
                assert self.publishing is None
                assert self.generators
                assert version == self.steps_done > self.live
                assert version - self.live >= self.settings.push_lag or version == self.settings.max_steps
                self.publishing = self.newest_sent = version

    def _with_room(self) -> list[str]:
        most, groups = self.settings.groups_per_replica, Counter(a.generator for a in self.running.values())
        # After a restart under a lower limit there may be more.
        return [name for name in self.generators if not most or groups[name] < most]

    def _outstanding_tokens(self, generator: str) -> float:
        first = self.settings.tokens_per_group
        mean = self.finished_tokens / self.num_finished if self.num_finished else first
        tasks = [task for task, attempt in self.running.items() if attempt.generator == generator]
        return sum(self.known_tokens.get(task, mean) for task in tasks)

    def _apply_train(self, train: Train) -> None:
        k, settings = train.step, self.settings
        assert k == self.steps_done < settings.max_steps
        assert not self.leased
        assert len(set(train.groups)) == len(train.groups) == settings.groups_per_step
        for task, attempt in train.groups:
            self.leased[task] = self.ready.pop(task)
            assert self.leased[task].number == attempt
        assert list(train.groups) == sorted(train.groups)
        batch = list(self.leased.values())
        oldest, newest = min(a.versions[0] for a in batch), max(a.versions[1] for a in batch)
        bound = self._bound()
        if settings.on_stale == "wait" and settings.policy == "bounded":
            limit = min((a.sequence for a in self.running.values()), default=10**9)
            assert all(a.sequence < limit + settings.selection_window for a in batch)
            S = self._exact_staleness
            if S % 1 and settings.selection_window == 1 and not self.changed:
                ages = [k - a.start_version for a in batch]
                assert max(ages) <= math.ceil(S)
                assert ages.count(math.ceil(S)) <= S % 1 * settings.groups_per_step
        assert train.min_version == k - bound
        assert self.controller.worst_case_staleness == bound
        if settings.on_stale == "mask":
            assert all(a.versions[1] >= train.min_version for a in batch)
            oldest = max(oldest, train.min_version)
        self.ages.append(k - oldest)
        assert k - oldest <= bound, "I1"
        if settings.policy == "sync":
            assert oldest == newest == k
        if settings.policy in ("one_step", "stale_k"):
            first = min(v for v in self.lives if v >= max(0, k - settings.max_staleness))
            assert first <= oldest <= newest <= k
            # A group of a longer lag may be lost after its version was; then nobody can generate it any more. Nor
            # the batches that a run is given when it has already published what was its last versions.
            assert newest == first or self.lost_bytes or self.lengthened

    @property
    def _next_step(self) -> int:
        return self.steps_done + bool(self.leased)

    def _bound(self) -> int:
        S, P, W = self.settings.max_staleness, self.settings.groups_per_step, self.settings.selection_window
        if self.settings.on_stale != "wait":
            return S
        if S % 1 == 0:
            return S + -(-(W - 1) // P) if S else 0
        num_slots = math.floor((self._exact_staleness + 1) * P)
        return 0 if num_slots == P else (num_slots + W - 2) // P

    @property
    def _exact_staleness(self) -> Fraction:
        return Fraction(str(self.settings.max_staleness))

    @property
    def _num_slots(self) -> int:
        return math.floor((self._exact_staleness + 1) * self.settings.groups_per_step) + self.settings.backup_groups

    def _check(self) -> None:
        settings, ledger = self.settings, asdict(self.controller.ledger)
        under_way = [*self.waiting, *self.running, *self.ready, *self.leased]
        assert ledger == {
            "drawn": self.drawn,
            "running": len(self.waiting) + len(self.running),
            "ready": len(self.ready),
            "leased": len(self.leased),
            "trained": len(self.trained),
            "filtered": self.reasons["filtered"].total(),
            "failed": self.reasons["failed"].total(),
            "stale": self.counts["stale"],
            "requeued": self.counts["requeued"],
            "filtered_reasons": self.reasons["filtered"],
            "failed_reasons": self.reasons["failed"],
            "skipped": 0,
        }
        self.controller.ledger.check()
        not_live = sum(step >= self.live for step in self.trained.values()) if self.live >= 0 else 0
        held = len(under_way) + not_live
        # Under new settings there may be more than their slots; then no new one is started.
        self.most_held = max(self._num_slots, min(self.most_held, held))
        assert held <= self.most_held, "slots"
        needed = settings.max_steps * settings.groups_per_step - len(under_way) - len(self.trained)
        assert needed >= 0, "over-drawn"
        if self._with_room() and self.live >= max(0, self._next_step - self._bound()):
            num_free = self._num_slots - (held - len(self.waiting))
            assert num_free <= 0 or not (self.waiting or needed), "a slot is free, and a generator has room"
        assert {(task, a.number) for t in (self.ready, self.leased) for task, a in t.items()} == self.buffer
        done = self.steps_done == settings.max_steps
        assert self.controller.finished == (done and (self.live == self.steps_done or not self.generators))

    # -- an environment in which everything ends

    def drain(self, rng: random.Random) -> None:
        """Lets everything in flight end, in random order, until the run is over; fails if it comes to a halt."""
        slots = self._num_slots
        # A step gives up each slot's attempt at most once, so it takes at most so many ends, a step, a publish.
        for _ in range((self.settings.max_steps + 1) * (2 * slots + 2)):
            if not self.generators and not (self.controller.finished and self.live >= 0):
                self.join("last")
            elif self.controller.finished:
                break
            else:
                self.happen(rng)
        assert self.controller.finished
        assert self.steps_done == self.settings.max_steps
        assert not self.waiting
        assert not self.running
        assert not self.buffer
        assert len(self.trained) == self.settings.max_steps * self.settings.groups_per_step

    def happen(self, rng: random.Random) -> None:
        """One random end among those due."""
        due = [
            action
            for action, possible in (
                (self.push_first, self.live < 0),
                (self.step_done, self.leased),
                (self.weights_live, self.publishing is not None),
            )
            if possible
        ] + list(self.running)
        assert due, "nothing is in flight and the run is not finished"
        choice = rng.choice(due)
        if isinstance(choice, int):
            low, high = self.versions_of(choice)
            oldest = rng.randint(low, high)
            self.finish(choice, oldest, rng.randint(oldest, high), rng.randint(1, 100))
        else:
            choice()
