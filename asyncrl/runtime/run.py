"""`train` and `resume`: from a recipe or a run directory to a finished run.

Nothing is written before everything that can be checked has been: recipe, data, cluster, then the run directory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

from ray.exceptions import RayTaskError

from asyncrl.checkpoint import atomic
from asyncrl.control.controller import Controller
from asyncrl.data.source import load_rows
from asyncrl.data.tasks import TaskSource
from asyncrl.errors import RunFailed, UserError
from asyncrl.models import TINY_LLAMA, load_tokenizer, make_tiny_llama
from asyncrl.observe.live import LiveView
from asyncrl.observe.metrics import MetricsWriter
from asyncrl.observe.report import write_report
from asyncrl.observe.trackers import Trackers
from asyncrl.plugins import one_line
from asyncrl.recipe.check import check
from asyncrl.recipe.load import control_settings, dump, load
from asyncrl.recipe.schema import Recipe
from asyncrl.rewards.load import load as load_reward
from asyncrl.runtime import actors, cluster
from asyncrl.runtime.driver import Driver
from asyncrl.runtime.recorder import Recorder

logger = logging.getLogger(__name__)


def train(recipe: Recipe, name: str, base_dir: Path) -> int:
    """Run a checked recipe from the start; returns the exit code."""
    run_dir = Path(recipe.run_dir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    tasks = _tasks(recipe, base_dir)
    with LiveView(recipe.max_steps, name, recipe.max_staleness) as view:
        view.phase("starting Ray")
        cluster.start(recipe)
        try:
            cluster.check_resources(recipe)
            run_dir.mkdir(parents=True)
            (run_dir / "checkpoints").mkdir()
            (run_dir / "recipe.yaml").write_text(dump(recipe))
            return asyncio.run(_run(recipe, name, run_dir.resolve(), base_dir, tasks, view, None))
        finally:
            cluster.stop()


def resume(run_dir: Path, overrides: list[str]) -> int:
    """Go on from the newest complete checkpoint; returns the exit code."""
    recipe = load(run_dir / "recipe.yaml", overrides)
    base_dir = Path.cwd()
    check(recipe.model_copy(update={"run_dir": None}), base_dir)
    checkpoint = atomic.latest(run_dir)
    steps_done = json.loads((checkpoint / "control.json").read_text())["steps_done"]
    if steps_done >= recipe.max_steps:
        raise UserError(
            f"{run_dir} has done all its {recipe.max_steps} steps; add max_steps=N with N > {steps_done} to go on"
        )
    tasks = _tasks(recipe, base_dir)
    name = run_dir.name
    with LiveView(recipe.max_steps, name, recipe.max_staleness) as view:
        view.phase("starting Ray")
        cluster.start(recipe)
        try:
            cluster.check_resources(recipe)
            (run_dir / "recipe.yaml").write_text(dump(recipe))
            return asyncio.run(_run(recipe, name, run_dir.resolve(), base_dir, tasks, view, checkpoint.resolve()))
        finally:
            cluster.stop()


def _tasks(recipe: Recipe, base_dir: Path) -> TaskSource:
    """Load the data and see that prompt, chat template and reward columns are there."""
    rows = load_rows(recipe.data, recipe.seed)
    load_reward(recipe.reward, base_dir, recipe.data.path).check_columns(rows.column_names)
    tasks = TaskSource(rows, recipe.data, recipe.seed)
    if recipe.model != TINY_LLAMA:
        tasks.check_template(load_tokenizer(recipe.model))
    return tasks


async def _run(
    recipe: Recipe, name: str, run_dir: Path, base_dir: Path, tasks: TaskSource, view: LiveView, checkpoint: Path | None
) -> int:
    state: dict[str, Any] = json.loads((checkpoint / "control.json").read_text()) if checkpoint else {}
    version = state.get("steps_done", 0)
    settings = control_settings(recipe)
    controller = Controller.restore(settings, state["controller"]) if state else Controller(settings)
    logger.info("staleness is at most %d updates", controller.worst_case_staleness)
    handles = actors.create(recipe, _model(recipe, run_dir), run_dir, base_dir, version)
    writer = MetricsWriter(run_dir / "metrics.jsonl")
    writer.truncate_after(version)
    trackers = Trackers(run_dir, recipe.track, recipe.model_dump(), name)
    recorder = Recorder(run_dir, writer, trackers, state)
    driver = Driver(recipe, run_dir, handles, controller, tasks, recorder, view)
    try:
        await driver.start(checkpoint, version)
        view.phase("training")
        await driver.run()
        controller.ledger.check()
        recorder.finish(controller.ledger, controller.worst_case_staleness)
        view.phase("stopping the engines")
    except RayTaskError as error:
        if isinstance(error, UserError | RunFailed):
            raise
        (run_dir / "error.log").write_text(str(error))
        raise RunFailed(f"{one_line(error.cause)}, in an actor; the traceback is in {run_dir}/error.log") from error
    finally:
        await driver.close()
        trackers.close()
        report = write_report(run_dir)
    view.phase(f"done; report: {report}")
    return 0


def _model(recipe: Recipe, run_dir: Path) -> str:
    """Where the engines and the trainer load the initial model from."""
    if recipe.model != TINY_LLAMA:
        path = Path(recipe.model)
        return str(path.resolve()) if path.is_dir() else recipe.model
    folder = run_dir / "initial_model"
    if not folder.exists():
        make_tiny_llama(folder, recipe.seed)
    return str(folder)
