"""Held-out tasks on whichever generators serve, and what their scores come to.

Waits for: the generators, each task with a deadline. A task whose generator is lost goes to another one.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from asyncrl.data.held_out import HeldOut
from asyncrl.data.prompts import BadPrompt
from asyncrl.errors import DeadlineExceeded
from asyncrl.observe.evaluations import FILE, mean_and_interval, passes, sentence
from asyncrl.observe.metrics import MetricsWriter
from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.engine import EngineDead
from asyncrl.rollout.evaluation import TaskScores
from asyncrl.storage.run_dir import replace
from asyncrl.verdicts import verdicts

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.2
"""While no generator serves."""


class Scoring:
    """`generators`: who serves, by name; `lost` is told of one that is gone; at most `most` rollouts of an evaluation
    are in flight."""

    def __init__(
        self,
        recipe: Recipe,
        waiting: WaitingFor,
        generators: Callable[[], Mapping[str, ActorHandle]],
        lost: Callable[[str, ActorHandle, Exception], None],
        most: int,
    ) -> None:
        self._recipe, self._waiting, self._most = recipe, waiting, most
        self._generators, self._lost = generators, lost
        self._load: Counter[str] = Counter()
        """Tasks of evaluations that each generator has."""

    async def scores(self, one: HeldOut, done: Callable[[int], object] = lambda _: None) -> list[TaskScores]:
        """Of every task, in their order. `done` is told how many are done."""
        places = iter(range(one.num_tasks))
        scores: dict[int, TaskScores] = {}

        async def work() -> None:
            for place in places:
                scores[place] = await self._task(one, place)
                done(len(scores))

        width = max(1, self._most // one.part.n)
        workers = [asyncio.ensure_future(work()) for _ in range(min(width, one.num_tasks))]
        # Each task has a deadline of its own, also when it is begun again: this one is for the log.
        deadline_s = (self._recipe.deadlines.rollout_s + self._recipe.deadlines.start_s) * (one.num_tasks + 1)
        what = f"{one.num_tasks} tasks of evaluation {one.part.name}"
        try:
            await self._waiting(asyncio.gather(*workers), "generators", what, deadline_s)
        finally:
            for worker in workers:
                worker.cancel()
        return [scores[place] for place in range(one.num_tasks)]

    async def _task(self, one: HeldOut, place: int) -> TaskScores:
        """On whichever generator has fewest; on another one if it is lost."""
        name, number = one.part.name, one.part.n
        try:
            task = one.tasks.task(place)
        except BadPrompt as fault:
            return TaskScores(place, "", [], [None] * number, [{}] * number, [str(fault)] * number)
        deadline_s = self._recipe.deadlines.rollout_s
        while True:
            generator = await self._waiting(
                self._free(), "generators", "one that serves", self._recipe.deadlines.start_s
            )
            handle = self._generators()[generator]
            self._load[generator] += 1
            try:
                asked = handle.evaluate.remote(name, task)
                what = f"task {place} of evaluation {name}"
                found: TaskScores = await self._waiting(asked, generator, what, deadline_s, part=True)
                return found
            except (RayActorError, EngineDead) as error:
                self._lost(generator, handle, error)
            except DeadlineExceeded:
                return TaskScores.failed(task, number, f"not done in {deadline_s:g} s (deadlines.rollout_s)")
            finally:
                self._load[generator] -= 1

    async def _free(self) -> str:
        while True:
            if serving := self._generators():
                return min(serving, key=lambda name: self._load[name])
            await asyncio.sleep(_LOOK_AGAIN_S)


def write(folder: Path, line: dict[str, Any], scores: list[TaskScores]) -> None:
    """The rollouts first: what has a line has them."""
    rollouts = folder / "evaluations"
    name = f"{line['name']}-{line['version']:06d}{'-alone' if line.get('alone') else ''}.jsonl"
    rollouts.mkdir(mode=0o700, exist_ok=True)
    lines = (json.dumps(rollout) + "\n" for one in scores for rollout in _rollouts(one))
    replace(rollouts / name, "".join(lines))
    MetricsWriter(folder / FILE).write(line)


def _rollouts(one: TaskScores) -> Iterator[dict[str, Any]]:
    for completion, reward, extras in zip(one.completions, one.rewards, one.extras, strict=False):
        yield {"row": one.row, "prompt": one.prompt, "completion": completion, "reward": reward, **extras}


def line_of(one: HeldOut, recipe: Recipe, version: int, scores: list[TaskScores]) -> dict[str, Any]:
    rewards = [[reward for reward in task.rewards if reward is not None] for task in scores]
    by_task = verdicts([task.rewards for task in scores], [task.extras for task in scores])
    versions: Counter[int] = Counter()
    for task in scores:
        versions.update(task.versions)
    rollouts, failed = one.part.n * len(scores), sum(len(task.errors) for task in scores)
    scored = [
        (tokens, truncated)
        for task in scores
        for reward, tokens, truncated in zip(task.rewards, task.num_tokens, task.truncated, strict=False)
        if reward is not None
    ]
    tokens = versions.total()
    line: dict[str, Any] = {
        "name": one.part.name,
        "version": version,
        "tasks": len(scores),
        "n": one.part.n,
        "temperature": recipe.evaluated(one.part).temperature,
    }
    for key, values in (("accuracy", by_task), ("reward", rewards)):
        mean, spread = mean_and_interval(values)
        line |= {key: mean, f"{key}_low": spread and spread[0], f"{key}_high": spread and spread[1]}
    return line | {
        "pass_at": passes(by_task, one.part.n),
        "failed": failed,
        "failed_share": failed / rollouts,
        "truncated_share": sum(truncated for _, truncated in scored) / len(scored) if scored else None,
        "tokens_mean": sum(num for num, _ in scored) / len(scored) if scored else None,
        "other_versions_share": 1 - versions[version] / tokens if tokens else 0.0,
        "also_trained": one.num_trained,
    }


def say(line: Mapping[str, Any], scores: list[TaskScores]) -> None:
    logger.info("evaluation %s", sentence(line))
    if line["failed"]:
        error = next(error for task in scores for error in task.errors)
        logger.warning(
            "evaluation %s of version %d: %d of %d rollouts failed and are not in its score; the first: %s",
            *(line["name"], line["version"], line["failed"], line["n"] * line["tasks"], error),
        )
    if line["other_versions_share"]:
        logger.warning(
            "evaluation %s of version %d: %s of its tokens are of other versions, as it took longer than a "
            "training step; lower eval.max_tasks, or evaluate a checkpoint with `asyncrl eval`",
            *(line["name"], line["version"], f"{line['other_versions_share']:.0%}"),
        )
