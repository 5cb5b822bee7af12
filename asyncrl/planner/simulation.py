"""A run in virtual time: the same `Controller` as on a cluster, its decisions carried out by engines and a trainer that
only take time. Pure Python, no clock, no threads: a seed gives one outcome.

    Start    -> an engine: rollouts of drawn lengths          -> GroupFinished, or GroupFiltered
    Train    -> the trainer: seconds by the batch's tokens    -> StepDone
    Publish  -> all engines pause, or one after the other     -> WeightsLive

What it leaves out: failures, rewards that take longer than the generation of others hides, the imbalance of trainer
ranks. One record per step has the names of `metrics.jsonl`.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import assert_never

from asyncrl.control.controller import Controller
from asyncrl.control.messages import (
    Cancel,
    Decision,
    Discard,
    Event,
    GeneratorJoined,
    GroupFiltered,
    GroupFinished,
    Publish,
    Start,
    StepDone,
    Train,
    WeightsLive,
)
from asyncrl.control.settings import Settings
from asyncrl.observe.metrics import shares
from asyncrl.planner.engine import STATES, DecodeSpeed, Engine, Group
from asyncrl.planner.lengths import Lengths

Record = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is generated, on what, and how long things take. Lengths in tokens, times in seconds."""

    group_size: int
    lengths: Lengths
    replicas: int
    decode: DecodeSpeed
    """Of one replica."""
    train_token_s: float
    """A step takes so long per completion token of its batch, its prompts included, ..."""
    train_step_s: float = 0.0
    """... and this."""
    push_s: float = 0.0
    """A replica stands still for so long."""
    rolling: bool = False
    """One replica after the other."""
    checkpoint_s: float = 0.0
    checkpoint_every_steps: int = 0
    """0: never."""
    driver_s: float = 0.0
    """Between the end of a step and the next decision."""
    filtered_share: float = 0.0
    """Of the finished groups: they are not trained."""


def simulate(settings: Settings, scene: Scene, seed: int = 0) -> list[Record]:
    """One record per step."""
    return Simulation(settings, scene, seed).run()


class Simulation:
    """Events in a heap by their time; engines say themselves when their next rollout ends."""

    def __init__(self, settings: Settings, scene: Scene, seed: int = 0) -> None:
        self.settings, self.scene = settings, scene
        self.controller = Controller(settings)
        self.records: list[Record] = []
        self._rng = random.Random(seed)
        self._now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._engines = [Engine(scene.decode) for _ in range(scene.replicas)]
        self._numbers_of = {f"generator-{i}": i for i in range(scene.replicas)}
        self._ends = [math.inf] * scene.replicas
        """When the next rollout of each engine ends."""
        self._next_ends: list[tuple[float, int]] = []
        """The same and the engine's number, a heap; an entry counts if it says what `_ends` says."""
        self._running: dict[int, tuple[Group, int]] = {}
        self._ready: dict[int, Group] = {}
        self._free_since = self._step_began = 0.0
        self._tokens_generated = 0.0
        self._num_events = 0

    def run(self) -> list[Record]:
        for name in self._numbers_of:
            self._tell(GeneratorJoined(name))
        self._tell(WeightsLive(0))
        while self.controller.steps_done < self.settings.max_steps:
            self._happen()
        return self.records

    @property
    def num_events(self) -> int:
        """So far: what was told to the controller, what it decided, rollouts that ended, and the rest of the heap."""
        return self._num_events + sum(engine.num_ended for engine in self._engines)

    def _happen(self) -> None:
        """What comes next."""
        ends = self._next_ends
        while ends and ends[0][0] != self._ends[ends[0][1]]:
            heapq.heappop(ends)
        if self._heap and (not ends or self._heap[0][0] <= ends[0][0]):
            self._now, _, happen = heapq.heappop(self._heap)
            self._num_events += 1
            happen()
            return
        self._now, number = heapq.heappop(ends)
        complete = self._engines[number].end_next(self._now)
        self._changed(number)
        for group in complete:
            self._finish(group)

    def _changed(self, number: int) -> None:
        """The next rollout of an engine ends at another time."""
        self._ends[number] = end = self._engines[number].next_end()
        if end < math.inf:
            heapq.heappush(self._next_ends, (end, number))

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self._now + seconds, next(self._numbers), happen))

    def _tell(self, event: Event) -> None:
        self.controller.handle(event)
        self._num_events += 1
        for decision in self._decide():
            self._carry_out(decision)

    def _decide(self) -> list[Decision]:
        decisions = self.controller.decide()
        self._num_events += len(decisions)
        return decisions

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case Start(task, attempt, generator):
                number = self._numbers_of[generator]
                group = Group(task, attempt, self.scene.lengths.draw(self._rng, self.scene.group_size))
                self._running[task] = group, number
                self._engines[number].start(self._now, group)
                self._changed(number)
            case Cancel(task):
                group, number = self._running.pop(task)
                self._engines[number].cancel(self._now, group)
                self._changed(number)
            case Discard(task):
                self._ready.pop(task, None)
            case Train():
                self._train(decision)
            case Publish(version):
                self._publish(version)
            case _:
                assert_never(decision)

    # -- generators

    def _finish(self, group: Group) -> None:
        del self._running[group.task]
        self._tokens_generated += group.num_tokens
        if self._rng.random() < self.scene.filtered_share:
            return self._tell(GroupFiltered(group.task, group.attempt, "equal_rewards"))
        self._ready[group.task] = group
        oldest, newest, tokens = min(group.tokens), max(group.tokens), round(group.num_tokens)
        self._tell(GroupFinished(group.task, group.attempt, oldest, newest, tokens))

    def _publish(self, version: int) -> None:
        push_s, rolling = self.scene.push_s, self.scene.rolling
        for number in range(len(self._engines)):
            begin_s = number * push_s if rolling else 0.0
            self._after(begin_s, partial(self._pause, number))
            self._after(begin_s + push_s, partial(self._resume, number, version))
        self._after(push_s * (len(self._engines) if rolling else 1), lambda: self._tell(WeightsLive(version)))

    def _pause(self, number: int) -> None:
        self._engines[number].pause(self._now)
        self._changed(number)

    def _resume(self, number: int, version: int) -> None:
        self._engines[number].resume(self._now, version)
        self._changed(number)

    # -- the trainer

    def _train(self, train: Train) -> None:
        scene, batch = self.scene, [self._ready.pop(task) for task, _ in train.groups]
        wait_s = self._now - self._free_since
        busy_s = scene.train_step_s + scene.train_token_s * sum(group.num_tokens for group in batch)
        every = scene.checkpoint_every_steps
        saving_s = scene.checkpoint_s if every and (train.step + 1) % every == 0 else 0.0
        spent = {"busy": busy_s, "wait_batch": wait_s, "wait_publish": 0.0, "checkpoint": saving_s}
        self._after(busy_s + saving_s + scene.driver_s, lambda: self._step_done(train, batch, spent))

    def _step_done(self, train: Train, batch: list[Group], spent: Mapping[str, float]) -> None:
        wall_s = self._now - self._step_began
        ages = {
            version: sum(group.tokens[version] for group in batch)
            for version in {version for group in batch for version in group.tokens if version >= train.min_version}
        }
        num_tokens, num_samples = sum(ages.values()), len(batch) * self.scene.group_size
        seconds = [engine.take_seconds(self._now) for engine in self._engines]
        whole_s = wall_s * len(seconds)
        self.records.append(
            {
                "step": train.step,
                "time_s": self._now,
                "completion/tokens_mean": sum(group.num_tokens for group in batch) / num_samples,
                "staleness/mean": sum((train.step - v) * n for v, n in ages.items()) / num_tokens,
                "staleness/max": train.step - min(ages),
                "tokens/generated": self._tokens_generated,
                "tokens/trained": num_tokens,
                "throughput/samples_per_s": num_samples / wall_s,
                "throughput/tokens_per_s": num_tokens / wall_s,
                **{f"trainer_time/{name}": share for name, share in shares(spent, wall_s).items()},
                **{f"generator_time/{state}": sum(s[state] for s in seconds) / whole_s for state in STATES},
            }
        )
        self._free_since = self._step_began = self._now
        self._tell(StepDone(train.step))
