"""The driver's part of a checkpoint: begun between two steps, completed beside the steps after it.

    begin     new journal segment with a snapshot of the controller; the trainer starts to copy and write
    complete  trainer's files written, control.json, journal durable, folder renamed, COMPLETE
    release   old ones deleted, and what the journal then no longer needs: not before every trainer that has begun to
              start from one of them is there
Waits for: the checkpoint before (one at a time), the trainer's files. Unblocked by: them; the deadline.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from asyncrl.buffer.records import ControlLog
from asyncrl.checkpoint.snapshots import Snapshots
from asyncrl.control.controller import Controller
from asyncrl.control.messages import Train
from asyncrl.errors import RunFailed, is_of_a_disk, nearest
from asyncrl.observe.evaluations import EVALUATION, scores_by_version
from asyncrl.orchestrator.ranks import Ranks
from asyncrl.orchestrator.trainer_link import TrainerLink
from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.plugins import one_line
from asyncrl.recipe.schema import Recipe
from asyncrl.storage import atomic
from asyncrl.storage.run_dir import replace
from asyncrl.trainer.messages import ResumePoint

logger = logging.getLogger(__name__)


class Checkpoints:
    """`batches`: every step's batch since the newest complete checkpoint, which `version` is the version of."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        journal: ControlLog,
        trainer: TrainerLink,
        buffer: ActorHandle,
        waiting: WaitingFor,
        *,
        version: int,
        folder: Path | None,
        batches: dict[int, Train],
        post: Callable[[BaseException], None],
        awaited: Callable[[str, int], bool],
    ) -> None:
        self._recipe, self._root, self._journal = recipe, run_dir / "checkpoints", journal
        self._trainer, self._buffer, self._waiting = trainer, buffer, waiting
        self.version, self.folder, self.batches = version, folder, batches
        self._post, self._awaited = post, awaited
        self._completing: asyncio.Task[None] | None = None
        self._num_held = 0
        self._outdated: Callable[[], None] | None = None
        """Releases what the newest complete checkpoint made needless, if that is still to be done."""
        self._again: Callable[[], None] | None = None
        """The same, whether or not it was done."""

    @asynccontextmanager
    async def origin(self, done: int, live: int, snapshots: Snapshots | None) -> AsyncIterator[ResumePoint]:
        """Where a trainer starts from to come to version `done`: the newest of the snapshots and checkpoints, and the
        batches since. All of it stays where it is while the block runs, whatever is completed meanwhile."""
        self._num_held += 1
        try:
            kept = await asyncio.to_thread(snapshots.latest, done) if snapshots else None
            # Nothing is awaited from here on: version, folder and batches belong together.
            use_snapshot = kept is not None and kept > self.version
            version = kept if use_snapshot and kept is not None else self.version
            batches = tuple(self.batches[step] for step in range(version, done))
            yield ResumePoint(version, self.folder, snapshots if use_snapshot else None, batches, live)
        finally:
            self._num_held -= 1
        self._release()

    def due(self, steps_done: int) -> bool:
        every = self._recipe.checkpoint.every_steps
        return steps_done == self._recipe.max_steps or (bool(every) and steps_done % every == 0)

    async def begin(self, controller: Controller, metrics: Mapping[str, Any]) -> None:
        """Start to save the state after the last step; returns as soon as the next step may run."""
        await self.wait()
        # First the trainer: a start of one that was lost may take long, and releases what is in the way of the folder.
        trainer = await self._trainer.ready()
        version = controller.steps_done
        best = self._recipe.checkpoint.keep_best
        if best is not None and not best.startswith(EVALUATION) and best not in metrics:
            logger.warning("checkpoint.keep_best: step %d has no metric %s%s", version, best, nearest(best, metrics))
        part = atomic.begin(self._root, version)
        state = controller.state()
        segment = self._journal.begin_segment(state)
        control = json.dumps({"steps_done": version, "controller": state, "metrics": dict(metrics)})
        try:
            deadline_s = self._recipe.deadlines.checkpoint_s
            await self._waiting(trainer.call("save", part), "trainer", f"to begin checkpoint {version}", deadline_s)
        except RayActorError as error:
            self._trainer.lost(trainer, error)
            return
        completing = self._complete(version, part, segment, control, controller, trainer)
        self._completing = asyncio.create_task(completing)
        self._completing.add_done_callback(self._report)

    def _report(self, completing: asyncio.Task[None]) -> None:
        if not completing.cancelled() and (error := completing.exception()):
            self._post(error)

    async def _complete(
        self, version: int, part: Path, segment: int, control: str, controller: Controller, trainer: Ranks
    ) -> None:
        try:
            deadline_s = self._recipe.deadlines.checkpoint_s
            await self._waiting(trainer.call("saved"), "trainer", f"checkpoint {version}", deadline_s)
            await self._waiting(trainer.first("export", part), "trainer", f"the model of step {version}", deadline_s)
            await asyncio.to_thread((part / "control.json").write_text, control)
            await asyncio.to_thread(self._journal.sync)
            self.folder = await asyncio.to_thread(atomic.commit, part)
        except RayActorError as error:
            logger.warning("checkpoint %d was not written: the trainer was lost", version)
            self._trainer.lost(trainer, error)
            return
        except (RayTaskError, OSError) as error:
            raise self._failed(version, error) from error
        self._completed(version, segment, controller)

    def _failed(self, version: int, error: RayTaskError | OSError) -> RunFailed:
        cause = getattr(error, "cause", error)
        if is_of_a_disk(cause):
            return RunFailed(
                f"checkpoint {version} could not be written to {self._root}: {one_line(cause)}; free or repair the "
                "disk, then `asyncrl resume`: nothing is lost"
            )
        log = self._root.parent / "error.log"
        replace(log, str(error))
        return RunFailed(
            f"checkpoint {version} could not be made: {one_line(cause)}; the traceback is in {log}; put that right, "
            f"then `asyncrl resume` trains the steps since version {self.version} again"
        )

    def _completed(self, version: int, segment: int, controller: Controller) -> None:
        self.version = version
        self._journal.checkpoint(version)
        self._outdated = self._again = lambda: self._prune(version, segment, controller)
        self._release()

    def scored(self) -> None:
        """An evaluation has ended: which checkpoint is the best may be another one now."""
        best = self._recipe.checkpoint.keep_best
        if best and best.startswith(EVALUATION) and self._again is not None:
            self._outdated = self._outdated or self._again
            self._release()

    def _release(self) -> None:
        if self._outdated is not None and not self._num_held:
            prune, self._outdated = self._outdated, None
            prune()

    def _prune(self, version: int, segment: int, controller: Controller) -> None:
        """What is older than the checkpoint has done its duty."""
        recipe = self._recipe.checkpoint
        best = recipe.keep_best
        known, awaited = None, None
        if best and best.startswith(EVALUATION):
            known, awaited = scores_by_version(self._root.parent, best), functools.partial(self._awaited, best)
        atomic.prune(self._root, recipe.keep_last, recipe.keep_every, best, known, awaited)
        for step in [step for step in self.batches if step < version]:
            del self.batches[step]
        if self._journal.may_forget(self._recipe.journal.keep):
            self._journal.forget_before(segment)
            needed = controller.attempts()
            needed |= {task: attempt for batch in self.batches.values() for task, attempt in batch.groups}
            self._buffer.release.remote(needed, controller.next_draw)

    async def wait(self) -> None:
        """Returns once no checkpoint is in flight. Raises what ended it."""
        if self._completing is not None:
            completing, self._completing = self._completing, None
            await completing
