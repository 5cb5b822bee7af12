"""The command line: `asyncrl COMMAND ...`; `asyncrl --help` lists the commands.

What a command needs is imported when it runs: `--help` and `--dry-run` load neither torch nor ray nor vllm.
Exit codes: 0 done, 1 the run failed or nothing was found, 2 bad input (one sentence on stderr, nothing written),
130 interrupted, 143 ended by SIGTERM, 141 who read the output has gone (`| head`).
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncrl.cli.arguments import parse
from asyncrl.errors import RunFailed, UserError
from asyncrl.recipe.cores import SPIN
from asyncrl.storage.run_dir import open_file
from asyncrl.terminal.escape import VisibleFormatter, visible

if TYPE_CHECKING:
    from asyncrl.recipe.schema import Recipe

logger = logging.getLogger("asyncrl")

_SILENCE = {
    "DATASETS_VERBOSITY": "critical",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "WANDB_SILENT": "true",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        try:
            with _terminable():
                return _run(parse(argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread(sys.stdout.fileno()):
            raise
        # What is still in the buffer would be written, and fail, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = max(Path(error.filename).parts, key=len)
        return _fail(f"the name {name[:40]}… is too long for a file system; choose a shorter one", 2)
    except (UserError, RunFailed) as error:
        # An error raised in an actor arrives inside Ray's, whose text is a traceback.
        cause = getattr(error, "cause", error)
        return _fail(" ".join(str(cause).split()), 2 if isinstance(error, UserError) else 1)
    except _Terminated:
        return _fail("ended by SIGTERM", 143)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


class _Terminated(KeyboardInterrupt):
    """SIGTERM cleans up as Ctrl-C does."""


@contextmanager
def _terminable() -> Iterator[None]:
    """In the block SIGTERM raises, once: what cleans up then is not interrupted. A running run has its own way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminated(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _fail(sentence: str, code: int) -> int:
    print(f"asyncrl: {visible(sentence)}", file=sys.stderr)
    return code


def _print(*lines: object) -> None:
    print(visible("\n".join(map(str, lines))))


def _is_unread(file: int) -> bool:
    """Whether it is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(file, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(arguments: argparse.Namespace) -> int:
    _quiet()
    if "run_dir" in arguments:
        arguments.run_dir = _local(arguments.run_dir, whole=arguments.command in ("resume", "replay"))
    match arguments.command:
        case "train":
            return _train(arguments.recipe, arguments.overrides, arguments.dry_run, arguments.or_resume)
        case "recipes":
            return _recipes(arguments)
        case "resume":
            return _resume(arguments.run_dir, arguments.overrides, arguments.accept, arguments.trust)
        case "plan":
            return _plan(arguments)
        case "submit":
            return _submit(arguments)
        case "attach" | "stop":
            from asyncrl.cluster import jobs

            return getattr(jobs, arguments.command)(arguments.job, arguments.address)
        case "report":
            return _report(arguments.run_dir, arguments.out)
        case "watch":
            return _watch(arguments.run_dir, arguments.host, arguments.port)
        case "compare":
            return _compare(arguments.run_dirs, arguments.out)
        case "inspect":
            return _inspect(arguments)
        case "replay":
            return _replay(arguments.run_dir, arguments.verify, arguments.trust)
        case "doctor":
            return _doctor(arguments.recipe)
    return 0


def _train(path: Path, overrides: list[str], dry_run: bool, or_resume: bool) -> int:
    from asyncrl.recipe.check import check
    from asyncrl.recipe.load import dump
    from asyncrl.recipe.stored import load_stored
    from asyncrl.storage import mirror, writers

    base_dir = Path.cwd()
    recipe = _loaded(path, overrides)
    if or_resume and recipe.run_dir and (there := _existing(recipe.run_dir)):
        # What is run is this user's own recipe. The copy of a URL is this user's too, whoever wrote what is in it.
        _, stored = load_stored(there, [], trust=mirror.is_url(recipe.run_dir))
        _check_same(recipe, stored)
        if (there / writers.FETCHED).exists():
            logger.warning(
                "%s: your recipe goes on with the weights and the history that are there, whoever wrote them",
                recipe.run_dir,
            )
        return _go_on(there, recipe, stored, [])
    check(recipe, base_dir)
    if dry_run:
        from asyncrl.data.check import preview

        first = preview(recipe, base_dir)
        _print(dump(recipe), *_sizes(recipe), *first, "ok")
        return 0
    with _importing():
        from asyncrl.orchestrator.run import train

    return train(recipe, path.stem, base_dir)


def _loaded(path: Path, overrides: list[str]) -> Recipe:
    """The recipe that this user names, as one names a script; says so if others may have written it."""
    from asyncrl.recipe.load import load
    from asyncrl.storage.writers import of_status

    recipe = load(path, overrides)
    if fault := of_status(path, path.stat()):
        logger.warning("%s, and the code that a recipe names runs as you", fault)
    return recipe


def _recipes(arguments: argparse.Namespace) -> int:
    from asyncrl.recipe import catalogue

    if arguments.action == "copy":
        print(*catalogue.copy(arguments.name, arguments.folder), sep="\n")
        return 0
    listed = list(catalogue.entries())
    widths = [max(len(getattr(entry, field)) for entry in listed) for field in ("name", "needs")]
    for entry in listed:
        print(f"{entry.name:<{widths[0]}}  {entry.needs:<{widths[1]}}  {entry.what}")
    print("\nasyncrl recipes copy NAME [DIR] makes one yours")
    return 0


def _existing(run_dir: str) -> Path | None:
    """The run that is there already."""
    from asyncrl.storage import mirror

    if mirror.is_url(run_dir):
        return mirror.fetch(run_dir) if mirror.exists(run_dir) else None
    return Path(run_dir) if (Path(run_dir) / "recipe.yaml").exists() else None


def _local(run_dir: str, whole: bool) -> Path:
    """The run directory, or the local copy of one at a URL; `whole`: with what it takes to go on from it."""
    from asyncrl.storage import mirror

    return mirror.fetch(run_dir, checkpoints=whole) if mirror.is_url(run_dir) else Path(run_dir)


def _check_same(recipe: Recipe, before: Recipe) -> None:
    """UserError if the run that is there was started with another recipe."""
    from asyncrl.recipe.paths import changed_keys

    if changed := changed_keys(before, recipe):
        raise UserError(
            f"run_dir {recipe.run_dir} holds a run of another recipe (other {', '.join(changed)}); choose another "
            f"run_dir, or say the change to it: asyncrl resume {recipe.run_dir} key=value"
        )


def _plan(arguments: argparse.Namespace) -> int:
    from asyncrl.planner.show import report
    from asyncrl.recipe.check import check

    base_dir, recipe = Path.cwd(), _loaded(arguments.recipe, arguments.overrides)
    check(recipe.model_copy(update={"run_dir": None}), base_dir, elsewhere=True)
    profile = arguments.profile and _local(arguments.profile, whole=False)
    _print(*report(recipe, base_dir, arguments.gpus, arguments.gpu, profile, arguments.mean_tokens))
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    from asyncrl.recipe.check import check

    base_dir, name = Path.cwd(), arguments.recipe.stem
    recipe = _loaded(arguments.recipe, arguments.overrides)
    check(recipe.model_copy(update={"run_dir": None}), base_dir, elsewhere=True)
    if arguments.slurm:
        from asyncrl.cluster import slurm

        print(slurm.script(recipe, name, base_dir, arguments.gpus_per_node, arguments.nodes), end="")
        return 0
    if arguments.kuberay:
        from asyncrl.cluster import kuberay

        sizes = arguments.gpus_per_node, arguments.nodes
        print(kuberay.manifest(recipe, name, base_dir, *sizes, arguments.image, arguments.claim), end="")
        return 0
    from asyncrl.cluster import jobs

    return jobs.submit(recipe, name, base_dir, arguments.address, arguments.detach)


def _sizes(recipe: Recipe) -> list[str]:
    """How large each loop of the run is, and the bound on staleness."""
    from asyncrl.control.staleness import slots, worst_case
    from asyncrl.recipe.load import control_settings

    settings = control_settings(recipe)
    rollout, trainer = recipe.rollout, recipe.trainer
    groups, num_slots = recipe.groups_per_step, slots(settings)
    turns = f" and {recipe.env.max_turns} turns" if recipe.env else ""
    engines = "" if rollout.first_replicas == rollout.replicas else f"{rollout.first_replicas} to "
    return [
        f"slots      {num_slots} groups in flight = (max_staleness {recipe.max_staleness} + 1) x {groups} per step"
        + (f" + {settings.backup_groups} backup" if settings.backup_groups else ""),
        f"staleness  no trained token is older than {worst_case(settings)} update(s) "
        f"(policy {settings.policy}, on_stale {recipe.on_stale})",
        f"episodes   up to {num_slots * recipe.group_size} rollouts of <= {recipe.max_sampled_tokens} tokens{turns} "
        f"on {engines}{rollout.replicas} x {rollout.engine} ({_device(rollout.gpus_per_replica)})",
        f"buffer     up to {num_slots} groups of {recipe.group_size}, in the journal (keep {recipe.journal.keep})",
        f"trainer    {recipe.max_steps} steps of {groups * recipe.group_size} trajectories, "
        f"<= {trainer.tokens_per_microbatch} tokens at once on {trainer.ranks} rank ({_device(trainer.gpus_per_rank)})",
        f"weights    {recipe.max_steps} pushes in {recipe.weights.dtype}, channel {recipe.weights.channel}",
    ]


def _device(num_gpus: int) -> str:
    return f"{num_gpus} GPU" if num_gpus else "CPU"


def _importing(for_a_run: bool = True) -> AbstractContextManager[Any]:
    """ray, torch and transformers: some seconds, more on a machine that has not read them yet. Said in a run's log, or
    beside what a command prints."""
    from asyncrl.terminal.console import RunConsole
    from asyncrl.terminal.progress import shown

    return shown("importing ray, torch and transformers", console=RunConsole() if for_a_run else None)


def _resume(run_dir: Path, overrides: list[str], accepted: list[str], trust: bool) -> int:
    from asyncrl.recipe.stored import load_stored

    _check_run_dir(run_dir)
    return _go_on(run_dir, *load_stored(run_dir, overrides, trust), accepted)


def _go_on(run_dir: Path, recipe: Recipe, stored: Recipe, accepted: list[str]) -> int:
    with _importing():
        from asyncrl.orchestrator.run import resume

    return resume(run_dir, recipe, stored, accepted)


def _report(run_dir: Path, out: Path | None) -> int:
    _check_run_dir(run_dir)
    from asyncrl.report.report import write_report

    _print(write_report(run_dir, out))
    return 0


def _watch(run_dir: Path, host: str, port: int) -> int:
    _check_run_dir(run_dir)
    from asyncrl.report.watch import watch

    watch(run_dir, host, port)
    return 0


def _compare(names: list[str], out: Path | None) -> int:
    run_dirs = [_local(name, whole=False) for name in names]
    for run_dir in run_dirs:
        _check_run_dir(run_dir)
    from asyncrl.report.compare import write_comparison

    _print(write_comparison(run_dirs, out).resolve())
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    _check_run_dir(arguments.run_dir)
    from asyncrl.report import inspection

    reward, age = (value and inspection.parse_range(value) for value in (arguments.reward, arguments.age))
    filters = inspection.Filters(arguments.task, reward, age)
    found = inspection.inspect(arguments.run_dir, filters, arguments.limit, arguments.show, arguments.export)
    return 0 if found else 1


def _replay(run_dir: Path, verify: bool, trust: bool) -> int:
    from asyncrl.recipe.stored import load_stored

    _check_run_dir(run_dir)
    _, recipe = load_stored(run_dir, [], trust)
    with _importing(for_a_run=False):
        from asyncrl.orchestrator.replay import replay_run

    found = replay_run(run_dir.resolve(), recipe, verify)
    print(f"history    {found.num_entries} entries; every decision comes out again")
    print(f"batches    steps {found.steps.start} to {found.steps.stop - 1}: {found.trained} groups, none twice")
    if verify:
        versions = ", ".join(map(str, found.compared))
        print(f"weights    versions {versions} trained again: bit for bit as in their checkpoints")
    return 0


def _doctor(path: Path | None) -> int:
    from asyncrl.observe.doctor import doctor

    if path is None:
        return doctor()
    from asyncrl.observe.doctor import Finding
    from asyncrl.recipe.load import load

    recipe = load(path, [])
    with _importing(for_a_run=False):
        from asyncrl.trainer.model import would_take_trees
    if would_take_trees(recipe):
        return doctor([Finding("ok", "attention", f"{recipe.model} takes prefix trees")], path)
    one = Finding("warn", "attention", f"{recipe.model} is trained one trajectory at a time", "see above")
    return doctor([one], path)


def _check_run_dir(run_dir: Path) -> None:
    try:
        open_file(run_dir, "recipe.yaml").close()
    except FileNotFoundError:
        fault = "has no recipe.yaml" if run_dir.exists() else "does not exist"
        raise UserError(f"{run_dir} is not a run directory: it {fault}") from None


def _quiet() -> None:
    """Only asyncrl speaks, unless the environment asks a library to."""
    for name, value in (*_SILENCE.items(), *SPIN.items()):
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.ERROR, handlers=[handler])
    logging.getLogger("asyncrl").setLevel(logging.INFO)
