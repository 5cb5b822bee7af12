"""A run in one process, in which every interleaving can be had: the real driver, trainer link, fleet, checkpoints,
buffer and journal on an event loop that decides itself whose call ends next, and when somebody dies.

    loop idle --turn--> one pending call is carried out and answered          (a `Plan` chooses which)
    every iteration of the loop is counted: at the ones that the plan names, its victim dies
Actors are fakes: a trainer's weights are the list of batches that it has trained, a generator's its version. Time is
virtual and passes only while nothing else can happen; a thread is a call like any other.
"""

from __future__ import annotations

import asyncio
import json
import random
import selectors
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError, RayTaskError
from rich.console import Console

from asyncrl.buffer import log
from asyncrl.buffer.actor import Buffer
from asyncrl.buffer.records import GROUPS_STREAM
from asyncrl.checkpoint.parity import SnapshotLost
from asyncrl.control.controller import Controller
from asyncrl.control.messages import Train
from asyncrl.data.held_out import HeldOut
from asyncrl.data.tasks import Task
from asyncrl.observe.metrics import MetricsWriter
from asyncrl.orchestrator.driver import Driver
from asyncrl.orchestrator.ranks import Ranks
from asyncrl.orchestrator.recorder import Recorder
from asyncrl.orchestrator.recovery import Recovered, recover
from asyncrl.recipe.load import control_settings
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.engine import EngineDead
from asyncrl.rollout.evaluation import TaskScores
from asyncrl.rollout.summary import GroupSummary, summarise
from asyncrl.rollout.trajectory import Group, Trajectory, decode, encode
from asyncrl.storage.sight import Sight
from asyncrl.terminal.live import LiveView
from asyncrl.trainer.backend import StepReport
from asyncrl.trainer.messages import Loaded, ResumePoint, TrainResult
from asyncrl.weights.update import PublishReport

METRICS = {f"offpolicy/{name}": 0.0 for name in ("logprob_gap", "ess", "clip_fraction", "kl")}


@dataclass(frozen=True)
class Plan:
    """`deaths`: iteration of the loop -> who dies in it; `noticed`: whoever waits for it hears of it in the same one,
    else when their turn has come. `last`: calls of this method are answered only when nothing
    else can be; `first`: before anything else. Otherwise the oldest call comes first, or with a `seed` any."""

    deaths: dict[int, str] = field(default_factory=dict)
    last: str = ""
    first: str = ""
    seed: int | None = None


class DriverDied(Exception):
    """kill -9 of the driver."""


class Stuck(AssertionError):
    """The driver waits, and nobody will answer."""


@dataclass(eq=False)
class Call:
    actor: Any
    method: str
    arguments: tuple[Any, ...]
    answer: asyncio.Future[Any]
    steps: Iterator[Any] | None = None
    needs: asyncio.Future[Any] | None = None
    """It goes on once this is done."""

    def can_go_on(self) -> bool:
        return not self.answer.done() and (self.needs is None or self.needs.done())


class Actor:
    """`handle.method.remote(...)` is a pending call; carried out, it is the method `do_<method>`. One that yields is
    carried out in as many turns, and goes on once the future that it yields is done."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.alive = world, name, True

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return SimpleNamespace(remote=lambda *arguments: self.world.call(self, method, *arguments))

    def queue(self, call: Call) -> str:
        """Calls of one queue are carried out one after the other; those of the queue "" side by side."""
        return ""

    def may_begin(self, call: Call) -> bool:
        return True

    def begin(self, call: Call) -> Any:
        return getattr(self, f"do_{call.method}")(*call.arguments)


class Thread(Actor):
    def do_run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class BufferActor(Actor):
    """Ray starts it again and repeats its calls, so nobody sees it die."""

    def __init__(self, world: World, recipe: Recipe, run_dir: Path) -> None:
        super().__init__(world, "buffer")
        self.recipe, self.folder = recipe.journal, run_dir / "journal"
        self.restart()

    def restart(self) -> None:
        self.real = Buffer(self.folder, self.recipe)

    def begin(self, call: Call) -> Iterator[Any]:
        while True:
            real = self.real
            task = asyncio.ensure_future(getattr(real, call.method)(*call.arguments))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            yield task
            if real is self.real:
                return task.result()

    def group(self, key: tuple[int, int]) -> Group:
        """As the trainer reads it. Raises KeyError."""
        return decode(log.read_at(self.folder, GROUPS_STREAM, self.real._index[tuple(key)]))


class Generator(Actor):
    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.version, self.cancelled, self.held = 0, set(), False

    def do_start(self) -> dict[str, Any]:
        return {"pid": 1, "host": "here", "run": "", "node": "here", "processes": [], "num_workers": 1, "probe": [0.0]}

    def do_placed(self) -> None: ...

    def do_score_probe(self) -> Any:
        return self.version, [float(self.version)]

    def do_ping(self, no_transfer: bool) -> None:
        if no_transfer and self.held:
            raise EngineDead("it is held")

    def do_close(self) -> None: ...

    def do_take_stats(self) -> Any:
        return {"busy": 1.0, "paused": 0.0, "idle": 0.0, "tokens": 1}, []

    def do_cancel_group(self, task: int, attempt: int) -> None:
        self.cancelled.add((task, attempt))

    def do_run_group(self, task: Task, attempt: int) -> Iterator[Any]:
        oldest = self.version
        yield None
        if task.number in self.world.endless:
            yield self.world.loop.create_future()
        if (task.number, attempt) in self.cancelled:
            return GroupSummary(task.number, attempt, "aborted")
        versions = np.array([-1, oldest, self.version], np.int32)
        arrays = np.arange(3, dtype=np.int32), versions, np.zeros(3, np.float32), versions >= 0
        group = Group(task.number, attempt, 0, (Trajectory(*arrays, 1.0, "stop"),))
        put = self.world.buffer.put.remote([(task.number, attempt)], [encode(group)])
        yield put
        put.result()
        return summarise(group)

    def do_evaluate(self, name: str, task: Task) -> Iterator[Any]:
        oldest = self.version
        yield None
        versions = dict(Counter([oldest, self.version]))
        return TaskScores(
            task.row_index, "prompt", ["text"], [1.0], [{}], num_tokens=[2], truncated=[False], versions=versions
        )


class Trainer(Actor):
    """One rank. `weights`: every batch trained, in order; so their number is the version."""

    def __init__(self, world: World, rank: int) -> None:
        super().__init__(world, f"trainer-{rank}")
        self.rank, self.peers, self.is_stuck = rank, [], False
        self.weights: list[Any] = []
        self.next: int | None = None
        self.sending: int | None = None

    @property
    def version(self) -> int:
        return len(self.weights)

    def queue(self, call: Call) -> str:
        groups = {"push": ("open_sender", "connect", "stage", "publish", "ping"), "save": ("saved", "export", "store")}
        return next((group for group, methods in groups.items() if call.method in methods), "steps")

    def may_begin(self, call: Call) -> bool:
        if self.is_stuck and self.queue(call) == "push":
            return False
        # A push that was asked for takes its copy before it is overwritten.
        pushing = call.arguments[1] if call.method == "train" else -1
        return self.next != pushing or pushing == self.version or not all(peer.alive for peer in self.peers)

    def do_rendezvous(self) -> None: ...

    def do_ping(self) -> None: ...

    def do_open_sender(self) -> None: ...

    def do_connect(self, replicas: Any, ends: list[Any]) -> None:
        self.replicas = replicas

    def do_start(self, origin: ResumePoint, snapshots: Any, rendezvous: Any) -> Iterator[Any]:
        yield None
        if origin.snapshots is not None:
            self.weights = list(origin.snapshots.load(origin.version))
        elif origin.folder is not None:
            self.weights = json.loads((origin.folder / "trainer" / f"rank_{self.rank}.json").read_text())
        assert self.version == origin.version, f"{origin} holds the weights of version {self.version}"
        self.snapshots = snapshots
        if max(origin.live, origin.version) == self.version:
            self._send(self.version)
        process = {"pid": 1, "host": "here", "run": "", "node": "here", "processes": []}
        return Loaded(process, ([0.0], self._probe()), kernels="")

    def do_train_again(self, batch: Train, live: int) -> list[float] | None:
        self._learn(batch)
        if live != self.version:
            return None
        self._send(live)
        return self._probe()

    def do_train(self, batch: Train, publishing: int, verifying: bool) -> TrainResult:
        if not all(peer.alive for peer in self.peers):
            raise RuntimeError("connection closed by peer")
        self._learn(batch)
        if self.snapshots and self.rank == 0:
            self.world.call(self, "store", self.version, list(self.weights))
        report = StepReport({"trainer/skipped_steps": 0.0, **METRICS}, 1, 1, (1,))
        return TrainResult(report, 0.1, 0.0, 0.0, [], self._probe() if verifying else None)

    def _probe(self) -> list[float]:
        return [float(self.version)]

    def _learn(self, batch: Train) -> None:
        groups = [self.world.buffer.group(key) for key in batch.groups]
        assert batch.step == self.version, f"step {batch.step} is trained with the weights of version {self.version}"
        for group in groups:
            oldest, newest = group.version_range
            assert batch.min_version <= oldest <= newest <= batch.step
        self._stage()
        self.weights = [*self.weights, [batch.step, [list(key) for key in batch.groups]]]

    def do_store(self, version: int, weights: list[Any]) -> None:
        self.snapshots.store(version, weights)

    # As weights/staging.py has it, but for the copies.

    def _stage(self) -> None:
        if self.version not in (self.next, self.sending):
            self.next = self.version

    def _send(self, version: int | None) -> int:
        if version is None:
            version = self.version if self.sending is None else self.sending
        if version == self.version:
            self._stage()
        if version not in (self.next, self.sending):
            raise RuntimeError(f"asked to publish version {version}, but the weights are of {self.version}")
        if version == self.next:
            self.sending, self.next = version, None
        return version

    def do_stage(self, version: int | None) -> Any:
        return self._send(version), None

    def do_publish(self, version: int, copies: list[Any]) -> Iterator[Any]:
        for replica in self.replicas.handles.values() if self.rank == 0 else ():
            yield None
            if version in self.world.stuck_pushes:
                self.world.stuck_pushes.discard(version)
                replica.held = self.is_stuck = True
                yield self.world.loop.create_future()
            if not replica.alive:
                raise RayActorError
            replica.version = version
        return PublishReport(version, 0.1, 0.1, 1)

    def do_save(self, folder: Path) -> None:
        self.saving = folder, list(self.weights)

    def do_saved(self) -> Iterator[Any]:
        yield None
        folder, weights = self.saving
        (folder / "trainer").mkdir(parents=True, exist_ok=True)
        (folder / "trainer" / f"rank_{self.rank}.json").write_text(json.dumps(weights))

    def do_export(self, folder: Path) -> None:
        (folder / "model").mkdir()

    def do_compare_export(self, folder: Path) -> Iterator[Any]:
        yield None
        saved = json.loads((folder / "trainer" / f"rank_{self.rank}.json").read_text())
        assert saved == json.loads(json.dumps(self.weights)), f"{folder} is not of version {self.version}"


class Snapshots:
    """Holders that keep the newest two versions, until they are lost."""

    def __init__(self) -> None:
        self.held: dict[int, list[Any]] = {}

    def store(self, version: int, weights: list[Any]) -> None:
        older = sorted(v for v in self.held if v < version)
        self.held = {v: self.held[v] for v in older[-1:]} | {version: weights}

    def latest(self, most: int = 2**31) -> int | None:
        return max((version for version in self.held if version <= most), default=None)

    def load(self, version: int) -> list[Any]:
        if version not in self.held:
            raise SnapshotLost(f"snapshot {version}: more than one shard is missing")
        return self.held[version]


class _Selector(selectors.SelectSelector):
    def __init__(self, turn: Callable[[float | None], None]) -> None:
        super().__init__()
        self.turn = turn

    def select(self, timeout: float | None = None) -> list[Any]:
        self.turn(timeout)
        return []


class World:
    """One life of a driver over a run directory."""

    def __init__(self, recipe: Recipe, run_dir: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recipe, self.run_dir, self.plan = recipe, run_dir, plan
        self.now, self.iteration, self.over = 0.0, 0, False
        self.pending: list[Call] = []
        self.random = random.Random(plan.seed)
        self.generators: dict[str, Generator] = {}
        self.endless: set[int] = set()
        """Tasks that no generator gets through."""
        self.stuck_pushes: set[int] = set()
        """Versions whose next push never ends, at either end."""
        self.killed: list[str] = []
        self.ranks: list[Trainer] = []
        self.thread = Thread(self, "thread")
        self.snapshots = Snapshots()
        self.buffer = BufferActor(self, recipe, run_dir)
        self.loop = asyncio.SelectorEventLoop(_Selector(self.turn))
        self.loop.time = lambda: self.now
        self.loop.set_exception_handler(lambda *_: None)
        self._patch(monkeypatch)

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def nobody(*_: Any, **__: Any) -> list[Any]:
            return []

        async def nowhere(*_: Any, **__: Any) -> None: ...

        def kill(handle: Actor) -> None:
            handle.alive = False
            self.killed.append(handle.name)

        monkeypatch.setattr("asyncio.to_thread", lambda f, *a: self.call(self.thread, "run", f, *a))
        monkeypatch.setattr("os.fsync", lambda _: None)
        monkeypatch.setattr("asyncrl.orchestrator.starter.ray.kill", kill)
        monkeypatch.setattr("asyncrl.processes.orphans.end_on_node", nobody)
        monkeypatch.setattr("asyncrl.orchestrator.driver.stacks.collect", nowhere)  # it would look for a Ray
        monkeypatch.setattr("asyncrl.orchestrator.waiting.time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr("asyncrl.orchestrator.driver.snapshots.create", lambda *_: self.snapshots)
        monkeypatch.setattr(
            "asyncrl.orchestrator.driver.own_processes", lambda: {"host": "here", "run": "", "processes": []}
        )

    # -- as `orchestrator/actors.py`

    def create_generator(self, name: str, buffer: Any) -> Generator:
        self.generators[name] = Generator(self, name)
        return self.generators[name]

    def create_trainer(self, buffer: Any) -> Ranks:
        self.ranks = [Trainer(self, rank) for rank in range(self.recipe.trainer.ranks)]
        for rank in self.ranks:
            rank.peers = self.ranks
        return Ranks(self.ranks)

    # -- the loop

    def call(self, actor: Actor, method: str, *arguments: Any) -> asyncio.Future[Any]:
        call = Call(actor, method, arguments, self.loop.create_future())
        self.pending.append(call)
        return call.answer

    def turn(self, timeout: float | None) -> None:
        if self.over:
            return
        self.iteration += 1
        assert self.iteration < 20_000, "the driver goes round in circles"
        if victim := self.plan.deaths.get(self.iteration):
            self.die(victim)
        if timeout == 0:
            return
        self.pending = [call for call in self.pending if not call.answer.done()]
        if call := self._choose():
            self._carry_out(call)
        elif timeout is None or self.now > 1e6:
            raise Stuck([(call.actor.name, call.method) for call in self.pending])
        else:
            self.now += timeout

    def die(self, victim: str) -> None:
        if victim == "driver":
            if (self.run_dir / "journal").exists():
                raise DriverDied
        elif victim == "buffer":
            self.buffer.restart()
        elif victim == "holders":
            self.snapshots.held.clear()
        elif victim.startswith("generator"):
            if victim in self.generators:
                self.generators[victim].alive = False
        elif self.ranks:
            dead = self.ranks[int(victim.split()[0][-1])]
            dead.alive = False
            for call in [call for call in self.pending if call.actor is dead and "noticed" in victim]:
                self._fail(call, RayActorError())

    def _choose(self) -> Call | None:
        heads: dict[tuple[Actor, str], Call] = {}
        for call in self.pending:
            key = (call.actor, call.actor.queue(call) if call.actor.alive and call.actor.queue(call) else str(id(call)))
            heads.setdefault(key, call)
        ready = [call for call in heads.values() if call.can_go_on() and self._can_begin(call)]
        preferred = [call for call in ready if call.method == self.plan.first]
        others = [call for call in ready if self._name(call) != self.plan.last]
        choices = preferred or others or ready
        if not choices:
            return None
        return choices[0] if self.plan.seed is None else self.random.choice(choices)

    def _can_begin(self, call: Call) -> bool:
        return call.steps is not None or not call.actor.alive or call.actor.may_begin(call)

    @staticmethod
    def _name(call: Call) -> str:
        return getattr(call.arguments[0], "__name__", "run") if call.method == "run" else call.method

    def _carry_out(self, call: Call) -> None:
        if not call.actor.alive:
            return self._fail(call, RayActorError())
        try:
            if call.steps is None:
                result = call.actor.begin(call)
                if not isinstance(result, Iterator):
                    return call.answer.set_result(result)
                call.steps = result
            call.needs = next(call.steps)
        except StopIteration as end:
            call.answer.set_result(end.value)
        except AssertionError:
            raise
        except Exception as error:
            remote = RayTaskError(call.method, f"{type(error).__name__}: {error}", error).as_instanceof_cause()
            self._fail(call, error if call.actor is self.thread else remote)

    @staticmethod
    def _fail(call: Call, error: BaseException) -> None:
        if not call.answer.done():
            call.answer.set_exception(error)

    # -- a life

    def live(self) -> Driver:
        """The driver, after its run. Raises what ended it otherwise, DriverDied too."""
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            try:
                return runner.run(self._live())
            finally:
                self.over = True

    async def _live(self) -> Driver:
        recipe, run_dir = self.recipe, self.run_dir
        resumed = (run_dir / "journal").exists() or (run_dir / "checkpoints").exists()
        if resumed:
            recovered = recover(run_dir, control_settings(recipe))
        else:
            recovered = Recovered(Controller(control_settings(recipe)), None, 0, {})
        for name in ("checkpoints", "journal"):
            (run_dir / name).mkdir(parents=True, exist_ok=True)
        writer = MetricsWriter(run_dir / "metrics.jsonl")
        writer.truncate_after(recovered.controller.steps_done)
        recorder = Recorder(run_dir, writer, SimpleNamespace(log=lambda *_: None))
        actors = SimpleNamespace(
            sight=Sight.begin(run_dir),
            buffer=lambda: self.buffer,
            generator=self.create_generator,
            trainer=self.create_trainer,
            reward_actors=(),
        )
        # One row in four is solved always, say, and draws of it are skipped.
        tasks = SimpleNamespace(
            task=lambda number: Task(number, 0, "prompt", {}),
            skipped_after=lambda number, rate: [] if number % 4 else [number + 5, number + 9],
        )
        held_out = [HeldOut(part, tasks, num_tasks=3) for part in recipe.eval]
        view = LiveView(recipe.max_steps, "test", 1, Console(quiet=True))
        driver = Driver(recipe, run_dir, actors, recovered, tasks, held_out, recorder, view)
        await driver.start()
        await driver.run()
        await driver.close()
        return driver


def copy_of(run_dir: Path) -> Path:
    """What a kill -9 leaves: what the system was given, as it is now."""
    return Path(shutil.copytree(run_dir, run_dir.with_name(f"{run_dir.name}-")))
