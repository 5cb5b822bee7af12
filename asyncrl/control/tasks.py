"""Where every task is: four tables of tasks under way, and counters of those that are done with.

draw ──▶ waiting ──start──▶ running ──finish──▶ ready ──lease──▶ leased ──▶ trained
            ▲                 │  └──▶ filtered, failed │
            └──── requeue ────┴────────────────────────┘
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from itertools import chain
from typing import Any

from asyncrl.control.ledger import Ledger

_TABLES = ("waiting", "running", "ready", "leased")


@dataclass
class Task:
    """One task under way; the last five fields are those of its current attempt."""

    number: int
    attempt: int
    batch: int | None
    """The batch it belongs to, under a fixed lag."""
    num_tokens: int | None = None
    """Known once an attempt has finished."""
    sequence: int = -1
    """Place in the order of starts; new at every start."""
    start_version: int = -1
    """Live version at the start: no token is older."""
    generator: str = ""
    oldest_version: int = -1
    newest_version: int = -1


class Tasks:
    """Moves tasks between states; knows no rule about when."""

    def __init__(self) -> None:
        self.waiting: dict[int, Task] = {}
        self.running: dict[int, Task] = {}
        """In the order of their start, the oldest first."""
        self.ready: dict[int, Task] = {}
        self.leased: dict[int, Task] = {}
        self.num_trained = 0
        self._num_drawn = 0
        self._num_starts = 0
        self._num_stale = 0
        self._num_requeued = 0
        self._filtered: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    def under_way(self) -> Iterable[Task]:
        """All tasks that may still be trained, in the order of their start where they have one."""
        started = chain(self.running.values(), self.ready.values(), self.leased.values())
        return chain(sorted(started, key=lambda task: task.sequence), self.waiting.values())

    @property
    def num_under_way(self) -> int:
        return len(self.waiting) + self.num_started

    @property
    def num_started(self) -> int:
        return len(self.running) + len(self.ready) + len(self.leased)

    def attempt_running(self, number: int, attempt: int) -> Task | None:
        """The task, if this attempt of it is running."""
        task = self.running.get(number)
        return task if task is not None and task.attempt == attempt else None

    def attempt_finished(self, number: int, attempt: int) -> bool:
        """Whether this attempt of the task is ready or leased."""
        task = self.ready.get(number) or self.leased.get(number)
        return task is not None and task.attempt == attempt

    def draw(self, batch: int | None) -> Task:
        """The next task, waiting for its start."""
        task = self.waiting[self._num_drawn] = Task(self._num_drawn, 0, batch)
        self._num_drawn += 1
        return task

    def start(self, task: Task, generator: str, live: int) -> None:
        self.running[task.number] = self.waiting.pop(task.number)
        task.sequence, task.generator, task.start_version = self._num_starts, generator, live
        self._num_starts += 1

    def finish(self, task: Task, oldest_version: int, newest_version: int, num_tokens: int) -> None:
        self.ready[task.number] = self.running.pop(task.number)
        task.oldest_version, task.newest_version, task.num_tokens = oldest_version, newest_version, num_tokens

    def filter(self, task: Task, reason: str) -> None:
        del self.running[task.number]
        self._filtered[reason] += 1

    def fail(self, task: Task, reason: str) -> None:
        del self.running[task.number]
        self._failed[reason] += 1

    def requeue(self, task: Task, *, stale: bool) -> None:
        """Gives up the attempt of a running or ready task."""
        table = self.running if task.number in self.running else self.ready
        self.waiting[task.number] = table.pop(task.number)
        task.attempt += 1
        self._num_requeued += 1
        self._num_stale += stale

    def lease(self, batch: Iterable[Task]) -> None:
        for task in batch:
            self.leased[task.number] = self.ready.pop(task.number)

    def train(self) -> None:
        """The leased tasks are trained."""
        self.num_trained += len(self.leased)
        self.leased.clear()

    def ledger(self) -> Ledger:
        return Ledger(
            drawn=self._num_drawn,
            running=len(self.waiting) + len(self.running),
            ready=len(self.ready),
            leased=len(self.leased),
            trained=self.num_trained,
            filtered=self._filtered.total(),
            failed=self._failed.total(),
            stale=self._num_stale,
            requeued=self._num_requeued,
            filtered_reasons=dict(self._filtered),
            failed_reasons=dict(self._failed),
        )

    def state(self) -> dict[str, Any]:
        """Everything, JSON-able; the order of each table is kept."""
        return {
            "drawn": self._num_drawn,
            "starts": self._num_starts,
            "trained": self.num_trained,
            "stale": self._num_stale,
            "requeued": self._num_requeued,
            "filtered": dict(self._filtered),
            "failed": dict(self._failed),
            **{name: [astuple(task) for task in getattr(self, name).values()] for name in _TABLES},
        }

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Tasks:
        """Inverse of `state`."""
        tasks = cls()
        tasks._num_drawn = state["drawn"]
        tasks._num_starts = state["starts"]
        tasks.num_trained = state["trained"]
        tasks._num_stale = state["stale"]
        tasks._num_requeued = state["requeued"]
        tasks._filtered.update(state["filtered"])
        tasks._failed.update(state["failed"])
        for name in _TABLES:
            getattr(tasks, name).update((fields[0], Task(*fields)) for fields in state[name])
        return tasks
