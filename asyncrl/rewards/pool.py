"""Runs reward functions in processes that can be killed.

A reward is the user's code, fed with whatever a model wrote: it may hang, hold the GIL for ever, exhaust memory
or crash. So it runs in `workers` processes. Each has its own socket and its own thread here, which starts it,
hands it one call at a time, and on a time-out or a crash kills it, with all that it started (`keeper.py`), and starts
another.
Nothing is shared between workers, so one that dies takes only its call with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from asyncrl import memory
from asyncrl.errors import UserError
from asyncrl.plugins import one_line
from asyncrl.processes.keeper import Code
from asyncrl.processes.kept import Kept
from asyncrl.rewards.parts import Part, combined, of_source
from asyncrl.rewards.score import RewardRequest, Score, failed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Call:
    place: int
    """Of the part that is called."""
    request: RewardRequest
    scores: Future[list[Score]] = field(default_factory=Future)


class RewardPool:
    """Scores the completions of a task, off the caller's event loop."""

    def __init__(
        self,
        parts: Sequence[Part],
        base_dir: Path,
        workers: int,
        timeout_s: float,
        *,
        memory_gib: float | None = None,
        file_gib: float = 16.0,
        start_timeout_s: float = 300.0,
        log: Path | None = None,
    ) -> None:
        """Starts the workers without waiting for them; they import the functions of all parts meanwhile.

        `timeout_s` bounds one call of one function in the worker, not its wait for a free worker nor a worker's
        start, which `start_timeout_s` bounds. `memory_gib` bounds what a worker and all that it starts hold together,
        by default half of the memory there is, and `file_gib` each file that they write.
        `log` is the file that takes what they print, made when they do; by default it goes where this process prints.
        """
        self._parts = tuple(parts)
        self._settings = (self._parts, str(base_dir))
        limit = memory_gib or memory.total() / 2**31
        self._code = Code("reward", "asyncrl.rewards.worker", limit, "rewards.memory_gib", file_gib, str(log or ""))
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._per_group: Future[list[bool]] = Future()
        self._closed = False
        self._lock = threading.Lock()
        # Readable once the pool is closed: wakes every thread that waits for its worker.
        self._stop, self._stop_writer = Pipe(duplex=False)
        self._threads = [threading.Thread(target=self._serve, name=f"reward-{i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    async def loaded(self) -> None:
        """Returns once a worker has loaded the functions. Raises UserError if the first could not."""
        # Shielded: the cancellation of one group must not cancel what all wait for.
        await asyncio.shield(asyncio.wrap_future(self._per_group))

    async def score(self, request: RewardRequest) -> list[Score]:
        """One Score per completion, in order. A call that fails, hangs or crashes gives failed Scores.

        A function for single completions is called once for each, with a time-out each; one for groups once for all.
        Waits for workers only, which have time-outs. Raises UserError if no worker could load the functions.
        """
        await self.loaded()
        per_group = self._per_group.result()
        if not (places := of_source(self._parts, request.source)):
            return [failed("the recipe names no reward function for it")] * len(request.completions)
        calls = [[_Call(p, one) for one in ([request] if per_group[p] else request.split())] for p in places]
        with self._lock:
            if self._closed:
                raise RuntimeError("the reward pool is closed")
            for call in itertools.chain(*calls):
                self._calls.put(call)
        answers = (asyncio.gather(*(asyncio.wrap_future(call.scores) for call in of_part)) for of_part in calls)
        results = await asyncio.gather(*answers)
        scores = [list(itertools.chain(*of_part)) for of_part in results]
        return combined([self._parts[place] for place in places], scores)

    def close(self, deadline_s: float = 30.0) -> None:
        """Kills the workers; calls not yet answered get failed Scores. Blocks for `deadline_s` at most."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._stop_writer.close()
            for _ in self._threads:
                self._calls.put(None)
        deadline = time.monotonic() + deadline_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.warning("reward worker %s did not stop within %g s", thread.name, deadline_s)

    def _serve(self) -> None:
        """One thread, one worker: waits for a call, then for the worker's answer."""
        worker = self._start_early()
        while (call := self._calls.get()) is not None:
            if not call.scores.set_running_or_notify_cancel():
                continue
            try:
                # It may have died in peace, by the out-of-memory killer say: that costs no call.
                if worker is None or worker.is_dead():
                    worker = self._start()
                scores = worker.ask((call.place, call.request), self._timeout_s)
                if isinstance(scores, str):
                    worker.kill()
                    raise _WorkerLost(scores)
            except Exception as error:
                reason = str(error) if isinstance(error, _WorkerLost) else one_line(error)
                scores = [failed(reason)] * len(call.request.completions)
                if isinstance(error, _WorkerLost):
                    worker = None
            call.scores.set_result(scores)
            worker = worker or self._start_early()
        if worker is not None:
            worker.kill()

    def _start_early(self) -> _Worker | None:
        """Starts a worker before there is a call for it; if that fails, the call will try again and say why."""
        with contextlib.suppress(_WorkerLost):
            return self._start()
        return None

    def _start(self) -> _Worker:
        """A worker that has loaded the function. The outcome of the first attempt is the pool's."""
        try:
            if self._closed:
                raise _WorkerLost("the reward pool was closed")
            worker = _Worker(self._stop, self._code)
            answer = worker.ask(self._settings, self._start_timeout_s)
            if isinstance(answer, str):
                worker.kill()
                raise UserError(answer)
        except Exception as error:
            problem = str(error) if isinstance(error, UserError) else f"no process for the reward: {error}"
            with contextlib.suppress(InvalidStateError):
                self._per_group.set_exception(UserError(problem))
            raise _WorkerLost(problem) from error
        with contextlib.suppress(InvalidStateError):
            self._per_group.set_result(answer)
        return worker


class _WorkerLost(Exception):
    """The worker is gone, and why. It has been killed and reaped."""


class _Worker:
    """A reward process, seen from the thread that owns it."""

    def __init__(self, stop: Connection, code: Code) -> None:
        self._stop = stop
        self._asked = 0
        self._connection, theirs = Pipe()
        with theirs:
            self._kept = Kept(code, theirs.fileno())

    def ask(self, message: Any, timeout_s: float) -> Any:
        """Sends a message and waits for its answer. Raises _WorkerLost, or what pickling the message raises."""
        try:
            self._asked += 1
            self._connection.send((self._asked, message))
            ready = wait([self._stop, self._connection], timeout_s)
            if self._connection in ready:
                match self._connection.recv():
                    case (self._asked, answer):
                        return answer
                self.kill()
                raise _WorkerLost("the reward process answered what it was not asked")
        except (EOFError, OSError):
            raise _WorkerLost(self.kill()) from None
        self.kill()
        raise _WorkerLost("the reward pool was closed" if ready else f"timed out after {timeout_s:g} s")

    def is_dead(self) -> bool:
        """Whether an idle worker is gone: it says nothing unasked, so what can be read is the end of file."""
        if not self._connection.poll():
            return False
        self.kill()
        return True

    def kill(self) -> str:
        """Ends the worker and all that it has started; says how it ended."""
        self._connection.close()
        return self._kept.kill()
