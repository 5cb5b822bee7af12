"""Commands that start something or say how it would run: train, sft, resume, submit, plan."""

from __future__ import annotations

import argparse
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from asyncrl.cli.common import check_run_dir, importing, local, say, soon
from asyncrl.errors import UserError
from asyncrl.task import DATA

if TYPE_CHECKING:
    from asyncrl.recipe.schema import Recipe

logger = logging.getLogger(__name__)


def train(arguments: argparse.Namespace) -> int:
    path, base_dir = arguments.recipe, Path.cwd()
    with soon(f"reading {path}"):
        from asyncrl.recipe.check import check
        from asyncrl.recipe.load import dump
        from asyncrl.recipe.stored import load_stored
        from asyncrl.storage import mirror, writers
        from asyncrl.storage.claim import claimed

        recipe = loaded(path, arguments.overrides)
    if arguments.or_resume and recipe.run_dir and (there := _existing(recipe.run_dir)):
        # What is run is this user's own recipe. The copy of a URL is this user's too, whoever wrote what is in it.
        _, stored = load_stored(there, [], trust=mirror.is_url(recipe.run_dir))
        _check_same(recipe, stored)
        if (there / writers.FETCHED).exists():
            logger.warning(
                "%s: your recipe goes on with the weights and the history that are there, whoever wrote them",
                recipe.run_dir,
            )
        return _go_on(there, recipe, stored, [])
    if not arguments.dry_run:
        with claimed(recipe.run_dir) if recipe.run_dir else nullcontext():
            return _begin(recipe, path, base_dir)
    with soon(f"checking {path}"):
        check(recipe, base_dir)
        lacking = _lacking_gpus(recipe)
    with soon("reading the data"):
        from asyncrl.data import sft as demonstrations
        from asyncrl.data.check import preview, tokenizer_of
        from asyncrl.data.epochs import in_steps
        from asyncrl.data.held_out import preview_held_out
        from asyncrl.recipe.check_algorithm import doubts

        if all(source.is_here for source in recipe.sources) and tokenizer_of(recipe, base_dir) is not None:
            recipe = in_steps(recipe, base_dir)
        first = [*preview(recipe, base_dir), *demonstrations.preview(recipe, base_dir)]
        first += preview_held_out(recipe, base_dir)
    doubted = [f"warning    {doubt}" for doubt in doubts(recipe)]
    doubted += [f"caution    here it would not start: {lacking}"] if lacking else []
    say(dump(recipe), *_sizes(recipe), *first, *doubted, "ok")
    return 0


def _begin(recipe: Recipe, path: Path, base_dir: Path) -> int:
    with soon(f"checking {path}"):
        from asyncrl.recipe.check import check

        check(recipe, base_dir)
        if lacking := _lacking_gpus(recipe):
            raise lacking
    with importing():
        from asyncrl.orchestrator.run import train as run

    run(recipe, path.stem, base_dir)
    return 0


def _lacking_gpus(recipe: Recipe) -> UserError | None:
    """What to say of a machine that is too small for it."""
    from asyncrl.cluster.room import require_gpus

    try:
        require_gpus(recipe)
    except UserError as error:
        return error
    return None


def sft(arguments: argparse.Namespace) -> int:
    """As `train`, of a recipe whose rows have the answers."""
    arguments.overrides = [f"rollout.engine={DATA}", *arguments.overrides]
    return train(arguments)


def loaded(path: Path, overrides: list[str]) -> Recipe:
    """The recipe that this user names, as one names a script; says so if others may have written it."""
    from asyncrl.recipe.load import load
    from asyncrl.storage.writers import of_status

    recipe = load(path, overrides)
    if fault := of_status(path, path.stat()):
        logger.warning("%s, and the code that a recipe names runs as you", fault)
    return recipe


def _existing(run_dir: str) -> Path | None:
    """The run that is there already."""
    from asyncrl.storage import mirror

    if mirror.is_url(run_dir):
        return mirror.fetch(run_dir) if mirror.exists(run_dir) else None
    return Path(run_dir) if (Path(run_dir) / "recipe.yaml").exists() else None


def _check_same(recipe: Recipe, before: Recipe) -> None:
    """UserError if the run that is there was started with another recipe."""
    from asyncrl.recipe.paths import changed_keys
    from asyncrl.recipe.schema import UNKNOWN_STEPS

    # Of max_epochs steps that are known there.
    steps = {"max_steps": before.max_steps} if recipe.max_steps == UNKNOWN_STEPS else {}
    if changed := changed_keys(before, recipe.model_copy(update=steps)):
        raise UserError(
            f"run_dir {recipe.run_dir} holds a run of another recipe (other {', '.join(changed)}); choose another "
            f"run_dir, or say the change to it: asyncrl resume {recipe.run_dir} key=value"
        )


def plan(arguments: argparse.Namespace) -> int:
    with soon(f"reading {arguments.recipe}"):
        from asyncrl.planner.show import report
        from asyncrl.recipe.check import check
        from asyncrl.terminal.progress import shown

    base_dir, recipe = Path.cwd(), loaded(arguments.recipe, arguments.overrides)
    check(recipe.model_copy(update={"run_dir": None}), base_dir, elsewhere=True)
    if recipe.from_data:
        raise UserError("plan divides GPUs among engines and trainer, and with rollout.engine data there is no engine")
    profile = arguments.profile and local(arguments.profile, whole=False)
    with shown(f"planning {arguments.recipe}"):
        found = report(recipe, base_dir, arguments.gpus, arguments.gpu, profile, arguments.mean_tokens)
    say(*found)
    return 0


def submit(arguments: argparse.Namespace) -> int:
    from asyncrl.recipe.check import check

    base_dir, name = Path.cwd(), arguments.recipe.stem
    recipe = loaded(arguments.recipe, arguments.overrides)
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


def job(arguments: argparse.Namespace) -> int:
    """attach, stop."""
    from asyncrl.cluster import jobs

    of_job = {"attach": jobs.attach, "stop": jobs.stop}
    return of_job[arguments.command](arguments.job, arguments.address)


def _judges(recipe: Recipe) -> list[str]:
    """Where rewards run that have a place of their own."""
    if (placement := recipe.rewards.placement) is None:
        return []
    processes = f"{placement.replicas} actor(s) x {recipe.rewards.workers} process(es)"
    return [f"rewards    {processes}, anywhere on the cluster; an actor reserves {placement}"]


def _sizes(recipe: Recipe) -> list[str]:
    """How large each loop of the run is, and the bound on staleness."""
    from asyncrl.control.staleness import at_once, slots, worst_case
    from asyncrl.recipe.load import control_settings
    from asyncrl.recipe.schema import UNKNOWN_STEPS

    settings = control_settings(recipe)
    rollout, trainer = recipe.rollout, recipe.trainer
    steps = f"{recipe.max_steps} steps"
    if recipe.max_steps == UNKNOWN_STEPS:
        steps = f"{recipe.max_epochs:g} epochs in steps"
    if recipe.from_data:
        what = "demonstrations" if recipe.group_size == 1 else "pairs"
        return [
            f"trainer    {steps} of {recipe.groups_per_step} {what} of <= {recipe.max_tokens} tokens "
            f"(longer ones are filtered), <= {trainer.tokens_per_microbatch} tokens at once on {trainer.ranks} rank "
            f"({_device(trainer.gpus_per_rank)})",
        ]
    groups, num_slots = recipe.groups_per_step, slots(settings)
    num_rollouts = at_once(settings, rollout.replicas) * recipe.group_size
    turns = f" and {recipe.env.max_turns} turns" if recipe.env else ""
    engines = "" if rollout.first_replicas == rollout.replicas else f"{rollout.first_replicas} to "
    return [
        f"slots      {num_slots} groups in flight = (max_staleness {recipe.max_staleness} + 1) x {groups} per step"
        + (f" + {settings.backup_groups} backup" if settings.backup_groups else ""),
        f"staleness  no trained token is older than {worst_case(settings)} update(s) "
        f"(policy {settings.policy}, on_stale {recipe.on_stale})",
        f"episodes   up to {num_rollouts} rollouts of <= {recipe.max_sampled_tokens} tokens{turns} "
        f"on {engines}{rollout.replicas} x {rollout.engine} ({_device(rollout.gpus_per_replica)})",
        *_judges(recipe),
        f"buffer     up to {num_slots} groups of {recipe.group_size}, in the journal (keep {recipe.journal.keep})",
        f"trainer    {steps} of {groups * recipe.group_size} trajectories, "
        f"<= {trainer.tokens_per_microbatch} tokens at once on {trainer.ranks} rank ({_device(trainer.gpus_per_rank)})",
        f"weights    a push for each in {recipe.weights.dtype}, channel {recipe.weights.channel}",
    ]


def _device(num_gpus: int) -> str:
    return f"{num_gpus} GPU" if num_gpus else "CPU"


def resume(arguments: argparse.Namespace) -> int:
    from asyncrl.recipe.stored import load_stored

    check_run_dir(arguments.run_dir)
    stored = load_stored(arguments.run_dir, arguments.overrides, arguments.trust)
    return _go_on(arguments.run_dir, *stored, arguments.accept)


def _go_on(run_dir: Path, recipe: Recipe, stored: Recipe, accepted: list[str]) -> int:
    with importing():
        from asyncrl.orchestrator.run import resume as go_on

    go_on(run_dir, recipe, stored, accepted)
    return 0
