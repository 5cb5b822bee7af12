"""`train` and `resume`: from a recipe or a run directory to a finished run.

Nothing is written before everything that can be checked has been: recipe, data, cluster, then the run directory.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.exceptions import RayError, RayTaskError

from asyncrl.buffer.records import control_bytes
from asyncrl.cluster import ray_cluster
from asyncrl.cluster.placement import Places, reserve
from asyncrl.control.controller import Controller
from asyncrl.data import sft
from asyncrl.data.check import answers, check_vocabulary, described, leave_out_long, load_tasks
from asyncrl.data.epochs import in_steps
from asyncrl.data.held_out import HeldOut, load_held_out
from asyncrl.data.hints import first_hinted
from asyncrl.data.mixture import Tasks
from asyncrl.data.vocabulary import check_teachers
from asyncrl.errors import RunFailed, UserError, remedy
from asyncrl.metric_names import nth
from asyncrl.models import (
    TINY_LLAMA,
    hub_config,
    is_local,
    load_tokenizer,
    local_config,
    make_tiny_llama,
    tiny_tokenizer,
)
from asyncrl.observe.metrics import MetricsWriter
from asyncrl.observe.prometheus import Prometheus
from asyncrl.observe.trackers import TrackedRun, Trackers
from asyncrl.orchestrator import fingerprint, same_model
from asyncrl.orchestrator.actors import Actors
from asyncrl.orchestrator.driver import Driver
from asyncrl.orchestrator.fingerprint import Fingerprint
from asyncrl.orchestrator.loop import Hooks, complete
from asyncrl.orchestrator.recorder import Recorder
from asyncrl.orchestrator.recovery import Recovered, recover
from asyncrl.orchestrator.status import told
from asyncrl.orchestrator.stop import Stop, StopSignals, stop_in_time
from asyncrl.plugins import one_line
from asyncrl.processes.deaths import reason
from asyncrl.processes.lock import RunLock
from asyncrl.processes.orphans import end_leftovers
from asyncrl.recipe.check import check, check_context, context_of
from asyncrl.recipe.check_algorithm import doubts
from asyncrl.recipe.load import control_settings, dump, worst_case_staleness
from asyncrl.recipe.paths import anchored, changed_keys
from asyncrl.recipe.schema import Recipe
from asyncrl.report.report import write_report
from asyncrl.rollout.endpoint import require_answer
from asyncrl.storage import mirror
from asyncrl.storage.run_dir import open_to, replace
from asyncrl.storage.sight import Sight
from asyncrl.storage.uploader import Uploader
from asyncrl.storage.writers import others
from asyncrl.terminal.live import LiveView
from asyncrl.trainer import schedule
from asyncrl.trainer.backend import backend_class

logger = logging.getLogger(__name__)


def train(recipe: Recipe, name: str, base_dir: Path, hooks: Hooks | None = None) -> Path:
    """Run a checked recipe from the start; returns the run directory."""
    hooks, recipe = hooks or Hooks(), in_steps(recipe, base_dir)
    url = recipe.run_dir if recipe.run_dir and mirror.is_url(recipe.run_dir) else None
    # A recipe's name may be as long as a file system takes; so may not what is made of it.
    run_dir = Path(recipe.run_dir or f"runs/{name[:200]}-{time.strftime('%Y%m%d-%H%M%S')}")
    if url:
        run_dir = mirror.local_copy(url)
        if mirror.exists(url) or run_dir.exists():
            raise UserError(f"run_dir {url} exists; choose another run_dir, or `asyncrl resume` it")
    with LiveView(recipe.max_steps, name, worst_case_staleness(recipe)) as view:
        view.phase("loading the data")
        tasks, held_out, begun_with = _tasks(recipe, base_dir)
        _check_model(recipe, base_dir, view)
        with with_ray(recipe, view.phase) as places:
            run_dir = make_run_dir(run_dir, may_rename=not recipe.run_dir)
            with open_to(run_dir, recipe.readable_by), RunLock(run_dir):
                (run_dir / "checkpoints").mkdir()
                replace(run_dir / "recipe.yaml", dump(_settled(recipe, base_dir)))
                same_model.record(run_dir, recipe.model)
                begun_with.write(run_dir)
                recovered = Recovered(Controller(control_settings(recipe)), None, 0, {})
                with _uploader(recipe, run_dir):
                    running = _run(recipe, run_dir.resolve(), base_dir, tasks, held_out, view, recovered, places, hooks)
                    return complete(running, hooks)


def resume(
    run_dir: Path, recipe: Recipe, stored: Recipe, accepted: Collection[str] = (), hooks: Hooks | None = None
) -> Path:
    """Take a run up where it broke off; returns its directory. A URL's run is resumed by its local copy.

    `recipe`: to go on by; `stored`: what its directory says; `recipe.stored.load_stored` gives both. `accepted`: the
    kinds of `kinds.KINDS` that may differ from what the run was begun with.
    """
    hooks, base_dir = hooks or Hooks(), Path.cwd()
    check(recipe.model_copy(update={"run_dir": None}), base_dir)
    recipe = in_steps(recipe, base_dir, stored)
    with RunLock(run_dir), LiveView(recipe.max_steps, run_dir.name, worst_case_staleness(recipe)) as view:
        view.phase("ending what the run before this left behind")
        for role in end_leftovers(run_dir / "processes.json", deadline_s=30.0):
            logger.warning("ended %s, left behind by the run that broke off", role)
        recovered = _recovered(recipe, run_dir, view)
        trained = _check_model(recipe, base_dir, view)
        same_model.require_same(run_dir, recipe, stored, trained, recovered.checkpoint)
        view.phase("loading the data")
        tasks, held_out, now = _tasks(recipe, base_dir)
        controller = recovered.controller
        keys = changed_keys(stored, recipe) | _bent(stored, recipe, controller.steps_done)
        again = controller.steps_done - recovered.version
        goes_on_with = fingerprint.compared(run_dir, now, accepted, controller, keys, again)
        tasks.draws = goes_on_with.draws

        def begun() -> None:
            """A change that no actor could start with is not kept, nor is what was there before it lost."""
            replace(run_dir / "recipe.yaml", dump(_settled(recipe, base_dir)))
            goes_on_with.write(run_dir)
            (run_dir / "summary.json").unlink(missing_ok=True)

        with with_ray(recipe, view.phase) as places, open_to(run_dir, recipe.readable_by), _uploader(recipe, run_dir):
            where = run_dir.resolve(), base_dir
            running = _run(recipe, *where, tasks, held_out, view, recovered, places, hooks, begun)
            return complete(running, hooks)


def _bent(stored: Recipe, recipe: Recipe, steps_done: int) -> dict[str, tuple[int, int]]:
    """What another max_steps changes of the learning rates of steps that are done; said, if the rate jumps."""
    was, now = (schedule.learning_rate(r, steps_done) for r in (stored, recipe))
    found = schedule.bent(stored, recipe, steps_done)
    if found:
        logger.warning(
            "step %d has the learning rate %g, and would have had %g with max_steps %d, where trainer.schedule ended",
            *(nth(steps_done), now, was, stored.max_steps),
        )
    return found


def _uploader(recipe: Recipe, run_dir: Path) -> Uploader:
    return Uploader(recipe.run_dir, run_dir, recipe.deadlines.checkpoint_s)


def _check_model(recipe: Recipe, base_dir: Path, view: LiveView) -> dict[str, tuple[int, ...]]:
    """See that the model's tensors are all there and that its adapters fit, before anything is started; shapes of what
    is trained."""
    view.phase("checking the model")
    trainer = backend_class(recipe, base_dir)
    if recipe.model != TINY_LLAMA:
        return trainer.trained_shapes(recipe.model, recipe)
    with tempfile.TemporaryDirectory() as scratch:
        return trainer.trained_shapes(str(make_tiny_llama(Path(scratch), recipe.seed)), recipe)


def _settled(recipe: Recipe, base_dir: Path) -> Recipe:
    """As its run directory has it: with absolute paths, unless it goes to where they would mean nothing."""
    travels = mirror.is_url(recipe.run_dir or "") or ray_cluster.base_dir_of_actors(base_dir) != base_dir
    return recipe if travels else anchored(recipe, base_dir)


def _recovered(recipe: Recipe, run_dir: Path, view: LiveView) -> Recovered:
    """Raises UserError if there is nothing left to do."""
    reading = view.phase("reading the journal, in KiB", total=control_bytes(run_dir / "journal") // 1024)

    def read(num_bytes: int) -> None:
        reading.done = num_bytes // 1024

    recovered = recover(run_dir.resolve(), control_settings(recipe), read)
    if recovered.version >= recipe.max_steps and (run_dir / "summary.json").exists():
        raise UserError(
            f"{run_dir} has done all its {recipe.max_steps} steps; "
            f"add max_steps=N with N > {recovered.version} to go on"
        )
    return recovered


@contextmanager
def with_ray(recipe: Recipe, say: Callable[[str], object]) -> Iterator[Places]:
    """Ray, with room for what the recipe asks for. An OSError of the run becomes a sentence: the disk is full, say."""
    say("starting Ray")
    if fault := others(Path.cwd()):
        logger.warning("%s: Ray's workers import from the working directory first; start in a folder of yours", fault)
    ray_cluster.start(recipe)
    failed = True
    try:
        yield reserve(recipe, say)
        failed = False
    except (UserError, KeyboardInterrupt):
        failed = False
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise RunFailed(
            f"{where}{error.strerror or one_line(error)}; {remedy(error)}, then `asyncrl resume`"
        ) from error
    finally:
        ray_cluster.stop(keep_logs=failed)


def make_run_dir(run_dir: Path, may_rename: bool) -> Path:
    """Make the folder; `may_rename`: under the next free name if another run has begun in the same second."""
    free, number = run_dir, 1
    while True:
        try:
            free.mkdir(mode=0o700, parents=True)
            return free
        except OSError as error:
            if not may_rename or not free.is_dir():
                raise UserError(f"run_dir: {free} cannot be made: {error.strerror}; choose another run_dir") from error
            number += 1
            free = run_dir.with_name(f"{run_dir.name}-{number}")


def _tasks(recipe: Recipe, base_dir: Path) -> tuple[Tasks, list[HeldOut], Fingerprint]:
    """Load the data and see that prompts, chat template and reward columns are there; and what all of them are."""
    tasks = load_tasks(recipe, base_dir)
    tokenizer = tiny_tokenizer() if recipe.model == TINY_LLAMA else load_tokenizer(recipe.model)
    _, tokens = tasks.first_prompt(tokenizer)
    if recipe.model != TINY_LLAMA:
        config = local_config(Path(recipe.model)) if is_local(recipe.model) else hub_config(recipe.model)
        check_context(recipe, context_of(config))
        check_vocabulary(config, tokenizer, tokens)
    leave_out_long(recipe, tasks, tokenizer)
    task, tokens = tasks.first(tokenizer)
    check_teachers(recipe, base_dir, tokenizer)
    for teacher in recipe.algorithm.teacher:
        if teacher.url:
            logger.info("asking the teacher at %s, for %g s at most", teacher.url, teacher.timeout_s)
            complete(require_answer(teacher, tokens))
        elif not is_local(teacher.model):
            check_context(recipe, context_of(hub_config(teacher.model)), teacher.model)
    for line in tasks.described():
        logger.info("data: %s", line)
    logger.info("first prompt: %s", described(task, tokens, tokenizer))
    if (hinted := first_hinted(recipe, task, tokenizer)) is not None:
        logger.info("its teacher reads %d tokens before the completion: %s", len(hinted), tokenizer.decode(hinted))
    for answer, _ in answers(task, tokenizer):
        logger.info("its answer: %s", answer)
    tasks.foresee(2 * recipe.max_steps * recipe.groups_per_step)
    demonstrations = sft.load_checked(recipe, tokenizer)
    held_out = load_held_out(recipe, base_dir, tokenizer, [tasks, *([demonstrations] if demonstrations else [])])
    return tasks, held_out, fingerprint.taken(recipe, base_dir, tasks, tokenizer, demonstrations)


async def _run(
    recipe: Recipe,
    run_dir: Path,
    base_dir: Path,
    tasks: Tasks,
    held_out: list[HeldOut],
    view: LiveView,
    recovered: Recovered,
    places: Places,
    hooks: Hooks,
    begun: Callable[[], None] = lambda: None,
) -> Path:
    """`begun` is called once all actors have started."""
    controller = recovered.controller
    if not recipe.from_data:
        logger.info("staleness is at most %d update(s)", controller.worst_case_staleness)
    model, sight = model_folder(recipe, run_dir), Sight.begin(run_dir)
    actors = Actors(recipe, model, sight, ray_cluster.base_dir_of_actors(base_dir), places)
    writer = MetricsWriter(run_dir / "metrics.jsonl")
    for lines in (writer, MetricsWriter(run_dir / "samples.jsonl")):
        lines.truncate_after(controller.steps_done)
    trackers = _trackers(recipe, run_dir, base_dir, hooks)
    answered = tasks.num_drawn if recipe.from_data else None
    recorder = Recorder(run_dir, writer, trackers, answered, tasks.selected(), recipe.taught_alone)
    driver = Driver(recipe, run_dir, actors, recovered, tasks, held_out, recorder, view)
    loop = asyncio.get_running_loop()

    def stop(why: str) -> None:
        loop.call_soon_threadsafe(driver.inbox.put_nowait, Stop(why))

    hooks.stop = stop
    # Until all is closed: a signal while the engines stop is no other than one before.
    with stop_on_signals(driver), stop_in_time(recipe.max_hours, driver.inbox.put_nowait):
        try:
            watched = ray_cluster.watched(f"asyncrl resume {run_dir}")
            async with told(run_dir / "status.json", driver.status, view.state), driver.notices.said(), watched:
                for doubt in doubts(recipe):
                    logger.warning("%s", doubt)
                await driver.start()
                begun()
                view.phase("training")
                await driver.run()
            controller.ledger.check()
            summary = recorder.finish(controller.ledger, controller.worst_case_staleness)
            for line in filter(None, (summary["result"], summary["bottleneck"])):
                view.phase(line)
            view.phase("stopping the engines")
        except RayTaskError as error:
            if isinstance(error, UserError | RunFailed):
                raise
            replace(run_dir / "error.log", str(error))
            raise RunFailed(f"{one_line(error.cause)}, in an actor; the traceback is in {run_dir}/error.log") from error
        except RayError as error:
            raise RunFailed(f"{reason(error)}; `asyncrl resume {run_dir}` goes on") from error
        except ray_cluster.ClusterDied:
            # Nobody is left to be closed.
            driver.fleet.serving.clear()
            driver.trainer.forget()
            raise
        finally:
            await driver.close()
            view.phase("closing the trackers, writing the report")
            await asyncio.to_thread(trackers.close)
            report = _report(run_dir)
    done, then = "done", f"; next: asyncrl export {run_dir}"
    if not controller.finished and driver.stopping:
        done = f"{driver.stopping.why} after step {controller.steps_done}; `asyncrl resume {run_dir}` goes on"
        then = ""
    view.phase(f"{done}; model: {driver.checkpoints.folder}/model; report: {report}{then}")
    return run_dir


def _trackers(recipe: Recipe, run_dir: Path, base_dir: Path, hooks: Hooks) -> Trackers:
    run = TrackedRun.of(run_dir, recipe.track.project, recipe.model_dump())
    more = {"Prometheus": lambda: Prometheus(run_dir, {"max_steps": recipe.max_steps})}
    for name, make in hooks.trackers.items():
        more[name] = functools.partial(make, run_dir, lambda why: hooks.stop(why))
    return Trackers(run, recipe.track, recipe.max_steps, base_dir, more)


def _report(run_dir: Path) -> str:
    """Where the report is. One that cannot be written ends no run, and hides no error of it."""
    try:
        return str(write_report(run_dir, run_dir / "report.html"))
    except Exception as error:
        why = str(error) if isinstance(error, UserError) else getattr(error, "strerror", None) or one_line(error)
        logger.warning("the report was not written: %s", why)
        return f"not written ({why}); `asyncrl report {run_dir}` writes it"


@contextmanager
def stop_on_signals(driver: Driver) -> Iterator[None]:
    """SIGTERM or Ctrl-C: finish the step, save, end. The second one, or deadlines.stop_s: end at once.

    SIGUSR1: write who waits for what to RUN_DIR/waiting.txt, and to the log. Signals come to the main thread: in
    another one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, main = asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None
    late: list[float] = []

    def first(signal_name: str) -> None:
        logger.warning("%s: the run stops after this step; once more stops it at once, to be resumed", signal_name)
        driver.inbox.put_nowait(Stop(f"stopped by {signal_name}"))
        loop.call_later(driver.recipe.deadlines.stop_s, overdue)

    def overdue() -> None:
        late.append(driver.recipe.deadlines.stop_s)
        main.cancel()

    def second() -> None:
        # Nothing to save: the journal has it. Ray and the actors end with this process.
        os._exit(130)

    def say() -> None:
        logger.warning("waiting for\n%s", driver.waiting.dump(driver.run_dir / "waiting.txt").rstrip())

    loop.add_signal_handler(signal.SIGUSR1, say)
    with StopSignals(loop, first, second):
        try:
            yield
        except asyncio.CancelledError:
            if not late:
                raise
            raise RunFailed(f"the run did not stop within {late[0]:.0f} s (deadlines.stop_s); resume it") from None


def model_folder(recipe: Recipe, run_dir: Path) -> str:
    """Where the engines and the trainer load the initial model from."""
    if recipe.model != TINY_LLAMA:
        path = Path(recipe.model)
        return str(path.resolve()) if path.is_dir() else recipe.model
    folder = run_dir / "initial_model"
    if not folder.exists():
        make_tiny_llama(folder, recipe.seed)
    return str(folder)
