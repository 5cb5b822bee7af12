"""Evaluations beside training: held-out tasks on the generators, scored for the version that is live.

    weights live, v --due--> tasks --> generators (at most half of what they run) --scores--> evaluations.jsonl
Waits for: the generators, each task with a deadline. The next push waits for an evaluation that is not done, so that
its tokens are of one version, for as long as one training step; then it goes on, and the line says how many tokens are
of another version. Training waits for none of this.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle

from asyncrl.control.staleness import slots
from asyncrl.data.held_out import HeldOut
from asyncrl.errors import DeadlineExceeded
from asyncrl.observe.evaluations import EVALUATION, flat, of_run, scores_by_version
from asyncrl.orchestrator.early_stop import reason
from asyncrl.orchestrator.scoring import Scoring, line_of, say, write
from asyncrl.orchestrator.stop import Stop
from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.recipe.load import control_settings
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.evaluation import TaskScores

logger = logging.getLogger(__name__)


class Evaluations:
    """Those of one run. `generators`: who serves, by name; `lost` is told of one that is gone; `told` gets the figures
    of an evaluation by the names of metrics, `post` hears of the end of each, and whether the run has learnt enough."""

    def __init__(
        self,
        recipe: Recipe,
        held_out: list[HeldOut],
        run_dir: Path,
        waiting: WaitingFor,
        generators: Callable[[], Mapping[str, ActorHandle]],
        lost: Callable[[str, ActorHandle, Exception], None],
        told: Callable[[dict[str, Any]], None],
        post: Callable[[Stop | None], None],
    ) -> None:
        self._recipe, self._held_out, self._run_dir = recipe, held_out, run_dir
        # Half of what a generator has to do: training goes on.
        most = slots(control_settings(recipe)) * recipe.group_size // 2
        self._scoring = Scoring(recipe, waiting, generators, lost, most)
        self._told, self._post = told, post
        self._begun = {(line["name"], line["version"]) for line in of_run(run_dir)}
        self._running: dict[tuple[str, int], asyncio.Event] = {}
        self._released = asyncio.Event()
        self._held: int | None = None
        """Version whose push waits."""
        self._wanted_since: float | None = None

    # -- which, when

    @property
    def running(self) -> bool:
        return bool(self._running)

    def due(self, version: int) -> list[HeldOut]:
        """Evaluations of a version that is live, which nobody has begun."""
        return [one for one in self._held_out if self._is_due(one, version)]

    def _is_due(self, one: HeldOut, version: int) -> bool:
        name, every = one.part.name, one.part.every_steps
        if (name, version) in self._begun:
            return False
        if version in (0, self._recipe.max_steps):
            return True
        if any(other == name for other, _ in self._running):
            return False  # one that takes longer than every_steps is not joined by others
        newest = max((done for other, done in self._begun if other == name), default=-1)
        return version // every > max(newest, 0) // every

    def live(self, version: int) -> Iterator[Coroutine[Any, Any, None]]:
        """The version is live: what is to run beside the run's other calls."""
        for one in self.due(version):
            self._begun.add((one.part.name, version))
            ended = self._running[one.part.name, version] = asyncio.Event()
            yield self._evaluate(one, version, ended)

    def awaited(self, metric: str, version: int) -> bool:
        """Whether the version may still get this score."""
        name = metric.removeprefix(EVALUATION).rpartition("/")[0]
        running = {version for other, version in self._running if other == name}
        begun = {version for other, version in self._begun if other == name}
        return version in running or version > max(begun, default=-1)

    async def before_push(self, version: int) -> None:
        """Returns once no evaluation runs, or the step that trains these weights is done."""
        if not self._running:
            return
        self._held, self._wanted_since = version, time.perf_counter()
        self._released.clear()
        released = asyncio.ensure_future(self._released.wait())
        all_done = asyncio.ensure_future(self.finish())
        try:
            await asyncio.wait({released, all_done}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            released.cancel()
            all_done.cancel()
            self._held = self._wanted_since = None

    def step_done(self, step: int) -> None:
        if self._held is not None and step >= self._held:
            self._released.set()

    async def finish(self) -> None:
        """Returns once those that run are done."""
        for ended in [*self._running.values()]:
            await ended.wait()

    # -- one

    def _sampled_by(self, one: HeldOut, version: int, scores: list[TaskScores]) -> int | None:
        """The version that the scores are of: another one if the generators were lost before they had begun, and came
        back with newer weights. None if that one has its own."""
        versions = {sampled for task in scores for sampled in task.versions}
        if not versions or version in versions:
            return version
        name, newest = one.part.name, max(versions)
        logger.warning(
            "evaluation %s of version %d is one of version %d: its generators were lost, and have newer weights now",
            *(name, version, newest),
        )
        if (name, newest) in self._begun:
            return None
        self._begun.add((name, newest))
        return newest

    async def _evaluate(self, one: HeldOut, version: int, ended: asyncio.Event) -> None:
        began = time.perf_counter()
        try:
            scores = await self._scoring.scores(one)
            now = time.perf_counter()
            held_s = now - (self._wanted_since or now)
            if (sampled_by := self._sampled_by(one, version, scores)) is None:
                return
            line = line_of(one, self._recipe, sampled_by, scores)
            line |= {"seconds": now - began, "push_held_s": held_s, "time": time.time()}
            write(self._run_dir, line, scores)
            self._told(flat(line))
            say(line, scores)
            self._stop_early()
        except asyncio.CancelledError:
            logger.warning("evaluation %s of version %d was broken off with the run", one.part.name, version)
            raise
        except DeadlineExceeded as error:
            logger.warning("evaluation %s of version %d is given up: %s", one.part.name, version, error)
        finally:
            del self._running[one.part.name, version]
            ended.set()
            self._post(None)

    def _stop_early(self) -> None:
        wish = self._recipe.early_stop
        if wish is not None and (why := reason(wish, scores_by_version(self._run_dir, wish.metric))):
            logger.info("%s", why)
            self._post(Stop(why))
