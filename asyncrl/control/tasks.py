"""Where every task is: four tables of tasks in flight, and counters of those that are done with.

draw ──▶ waiting ──start──▶ running ──finish──▶ ready ──lease──▶ leased ──▶ trained
            ▲                 │  └──▶ filtered, failed │
            └──── requeue ────┴────────────────────────┘
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from operator import attrgetter
from typing import Any

from asyncrl.control.ledger import Ledger

_TABLES = ("waiting", "running", "ready", "leased")


@dataclass
class Task:
    """One task in flight; the last five fields are those of its current attempt."""

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


_fields_of = attrgetter(*(field.name for field in fields(Task)))
_sequence = attrgetter("sequence")


class Tasks:
    """Moves tasks between states; knows no rule about when. The cost of a move hardly grows with the tasks there are:
    ten thousand may be in flight."""

    def __init__(self) -> None:
        self.waiting: dict[int, Task] = {}
        self.running: dict[int, Task] = {}
        """In the order of their start, the oldest first."""
        self.ready: dict[int, Task] = {}
        self.leased: dict[int, Task] = {}
        self.in_batch: Counter[int | None] = Counter()
        """Tasks in flight of each batch."""
        self.ready_in_batch: Counter[int | None] = Counter()
        self._ready_in_order: list[Task] = []
        self.num_trained = 0
        self._num_drawn = 0
        self._skip: set[int] = set()
        """Numbers that no task will have."""
        self._num_skipped = 0
        self._num_starts = 0
        self._num_stale = 0
        self._num_requeued = 0
        self._filtered: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    def under_way(self) -> Iterable[Task]:
        """All tasks that may still be trained."""
        return chain(*(getattr(self, name).values() for name in _TABLES))

    def ready_below(self, sequence: int | None) -> Sequence[Task]:
        """The ready tasks that were started before this one (None: all), the oldest first."""
        if sequence is None:
            return self._ready_in_order
        return self._ready_in_order[: bisect_left(self._ready_in_order, sequence, key=_sequence)]

    @property
    def num_under_way(self) -> int:
        return len(self.waiting) + self.num_started

    @property
    def num_started(self) -> int:
        return len(self.running) + len(self.ready) + len(self.leased)

    def on_generators(self) -> Counter[str]:
        """Number of tasks that run on each."""
        return Counter(task.generator for task in self.running.values())

    def attempt_running(self, number: int, attempt: int) -> Task | None:
        """The task, if this attempt of it is running."""
        task = self.running.get(number)
        return task if task is not None and task.attempt == attempt else None

    def attempt_finished(self, number: int, attempt: int) -> bool:
        """Whether this attempt of the task is ready or leased."""
        task = self.ready.get(number) or self.leased.get(number)
        return task is not None and task.attempt == attempt

    @property
    def next_number(self) -> int:
        """All below were drawn or skipped."""
        return self._num_drawn + self._num_skipped

    @property
    def num_to_skip(self) -> int:
        return len(self._skip)

    def skip(self, numbers: Iterable[int]) -> None:
        """Draws that are left out, as far as they are still to come."""
        self._skip.update(number for number in numbers if number >= self.next_number)

    def draw(self, batch: int | None) -> Task:
        """The next task, waiting for its start."""
        while (number := self.next_number) in self._skip:
            self._skip.remove(number)
            self._num_skipped += 1
        task = self.waiting[number] = Task(number, 0, batch)
        self.in_batch[batch] += 1
        self._num_drawn += 1
        return task

    def start(self, task: Task, generator: str, live: int) -> None:
        self.running[task.number] = self.waiting.pop(task.number)
        task.sequence, task.generator, task.start_version = self._num_starts, generator, live
        self._num_starts += 1

    def finish(self, task: Task, oldest_version: int, newest_version: int, num_tokens: int) -> None:
        self._put_ready(self.running.pop(task.number))
        task.oldest_version, task.newest_version, task.num_tokens = oldest_version, newest_version, num_tokens

    def _put_ready(self, task: Task) -> None:
        self.ready[task.number] = task
        self.ready_in_batch[task.batch] += 1
        insort(self._ready_in_order, task, key=_sequence)

    def _take_ready(self, task: Task) -> Task:
        del self._ready_in_order[bisect_left(self._ready_in_order, task.sequence, key=_sequence)]
        self.ready_in_batch[task.batch] -= 1
        return self.ready.pop(task.number)

    def filter(self, task: Task, reason: str) -> None:
        self._end(task)
        self._filtered[reason] += 1

    def fail(self, task: Task, reason: str) -> None:
        self._end(task)
        self._failed[reason] += 1

    def _end(self, task: Task) -> None:
        del self.running[task.number]
        self.in_batch[task.batch] -= 1

    def requeue(self, task: Task, *, stale: bool) -> None:
        """Gives up the attempt of a running or ready task."""
        is_running = task.number in self.running
        self.waiting[task.number] = self.running.pop(task.number) if is_running else self._take_ready(task)
        task.attempt += 1
        self._num_requeued += 1
        self._num_stale += stale

    def lease(self, batch: Iterable[Task]) -> None:
        for task in batch:
            self.leased[task.number] = self._take_ready(task)

    def train(self) -> None:
        """The leased tasks are trained."""
        self.num_trained += len(self.leased)
        self.in_batch.subtract(task.batch for task in self.leased.values())
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
            skipped=self._num_skipped,
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
            # Not in the history of a run that skips nothing: it is as it always was.
            **({"skipped": self._num_skipped, "skip": sorted(self._skip)} if self._num_skipped or self._skip else {}),
            **{name: [_fields_of(task) for task in getattr(self, name).values()] for name in _TABLES},
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
        tasks._num_skipped = state.get("skipped", 0)
        tasks._skip.update(state.get("skip", ()))
        for name in _TABLES:
            for task in (Task(*values) for values in state[name]):
                if name == "ready":
                    tasks._put_ready(task)
                else:
                    getattr(tasks, name)[task.number] = task
        tasks.in_batch.update(task.batch for task in tasks.under_way())
        return tasks
