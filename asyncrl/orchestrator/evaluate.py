"""`asyncrl eval`: the evaluations of a recipe on a model that is not being trained, or on a run's checkpoint.

Its generators hold one version, so all tokens are of it. Waits for: the generators, each with a deadline.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from asyncrl.cluster import ray_cluster
from asyncrl.data.held_out import HeldOut, load_held_out
from asyncrl.errors import RunFailed
from asyncrl.models import load_tokenizer
from asyncrl.orchestrator.actors import Actors, max_concurrency, reward_role
from asyncrl.orchestrator.fleet import close
from asyncrl.orchestrator.loop import complete
from asyncrl.orchestrator.run import model_folder, with_ray
from asyncrl.orchestrator.scoring import Scoring, line_of, say, write
from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.processes.deaths import reason
from asyncrl.recipe.schema import Recipe
from asyncrl.storage import private
from asyncrl.storage.sight import Sight
from asyncrl.terminal.progress import shown

logger = logging.getLogger(__name__)


def evaluate(recipe: Recipe, version: int, out: Path, base_dir: Path) -> list[dict[str, Any]]:
    """Every evaluation of a recipe whose `model` is a folder or hub name; the lines, written to `out`, a folder.

    `version` is what the lines call the weights. Raises UserError for data that cannot be had, RunFailed if all
    generators are lost.
    """
    alone = recipe.trainer.model_copy(update={"ranks": 1, "gpus_per_rank": 0})
    recipe = recipe.model_copy(update={"trainer": alone})
    # One that a killed evaluation has left here goes, too.
    work_dir = private.make(out.resolve())
    try:
        model = model_folder(recipe, work_dir)
        held_out = load_held_out(recipe, base_dir, load_tokenizer(model), ())
        with with_ray(recipe, logger.info) as places:
            actors = Actors(recipe, model, Sight.begin(work_dir), ray_cluster.base_dir_of_actors(base_dir), places)
            return complete(_evaluate(actors, held_out, version, out))
    finally:
        private.remove(work_dir)


async def _evaluate(actors: Actors, held_out: list[HeldOut], version: int, out: Path) -> list[dict[str, Any]]:
    recipe = actors.recipe
    waiting = WaitingFor(recipe.deadlines.warn_s)
    names = [f"generator-{number}" for number in range(recipe.rollout.replicas)]
    serving = {name: actors.generator(name, None) for name in names}
    judges = {reward_role(number): actor for number, actor in enumerate(actors.reward_actors)}

    def lost(name: str, handle: ActorHandle, error: Exception) -> None:
        if serving.pop(name, None) is not None:
            logger.warning("%s is lost (%s); its tasks go to others", name, reason(error))
        if not serving:
            raise RunFailed(f"no generator is left: {reason(error)}")

    try:
        with shown(f"starting {len(names)} generator(s)"):
            loading = ((name, handle, "model") for name, handle in serving.items())
            judging = ((name, handle, "reward") for name, handle in judges.items())
            await asyncio.gather(*(_start(recipe, waiting, *one) for one in (*loading, *judging)))
        scoring = Scoring(recipe, waiting, lambda: serving, lost, max_concurrency(recipe) // 2)
        return [await _one(recipe, scoring, one, version, out) for one in held_out]
    finally:
        await close(waiting, {**serving, **judges})


async def _start(recipe: Recipe, waiting: WaitingFor, name: str, handle: ActorHandle, what: str) -> None:
    try:
        await waiting(handle.start.remote(), name, f"to load the {what}", recipe.deadlines.start_s)
    except RayActorError as error:
        raise RunFailed(f"{name} did not start: {reason(error)}") from error


async def _one(recipe: Recipe, scoring: Scoring, one: HeldOut, version: int, out: Path) -> dict[str, Any]:
    began = time.perf_counter()
    with shown(f"evaluating {one.part.name}: {one.num_tasks} tasks x {one.part.n}", one.num_tasks) as done:
        scored = await scoring.scores(one, done)
    # The engines stamp what they load as version 0.
    scores = [replace(task, versions={version: sum(task.versions.values())}) for task in scored]
    line = line_of(one, recipe, version, scores)
    line |= {"seconds": time.perf_counter() - began, "push_held_s": 0.0, "time": time.time(), "alone": True}
    write(out, line, scores)
    say(line, scores)
    return line
