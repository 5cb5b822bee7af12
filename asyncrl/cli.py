"""The command line: `asyncrl train | resume | report | replay | doctor`.

What a command needs is imported when it runs: `--help` and `--dry-run` load neither torch nor ray nor vllm.
Exit codes: 0 done, 1 the run failed, 2 bad input (one sentence on stderr, nothing written), 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import asyncrl
from asyncrl.errors import RunFailed, UserError

if TYPE_CHECKING:
    from asyncrl.recipe.schema import Recipe

_SILENCE = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "WANDB_SILENT": "true",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        return _run(_arguments(argv))
    except (UserError, RunFailed) as error:
        # An error raised in an actor arrives inside Ray's, whose text is a traceback.
        cause = getattr(error, "cause", error)
        print(f"asyncrl: {' '.join(str(cause).split())}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("asyncrl: interrupted", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _parser() -> _Parser:
    parser = _Parser(prog="asyncrl", description="Asynchronous RL post-training of language models on Ray.")
    parser.add_argument("--version", action="version", version=f"asyncrl {asyncrl.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    override_help = "recipe keys to change, such as trainer.learning_rate=1e-5"

    train = commands.add_parser("train", help="run a recipe", usage="asyncrl train RECIPE [key=value ...] [--dry-run]")
    train.add_argument("recipe", metavar="RECIPE", type=Path, help="a YAML file, such as recipes/tiny.yaml")
    train.add_argument("overrides", metavar="key=value", nargs="*", help=override_help)
    train.add_argument("--dry-run", action="store_true", help="check and print the resolved recipe, run nothing")

    resume = commands.add_parser(
        "resume", help="go on from a run's newest checkpoint", usage="asyncrl resume RUN_DIR [key=value ...]"
    )
    resume.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="a directory that `asyncrl train` made")
    resume.add_argument("overrides", metavar="key=value", nargs="*", help=override_help)

    report = commands.add_parser("report", help="write a run's report.html", usage="asyncrl report RUN_DIR")
    report.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="a directory that `asyncrl train` made")

    replay = commands.add_parser(
        "replay", help="check a run against its journal", usage="asyncrl replay RUN_DIR [--verify]"
    )
    replay.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="a directory that `asyncrl train` made")
    replay.add_argument(
        "--verify", action="store_true", help="train the journalled batches again and compare with every checkpoint"
    )

    commands.add_parser("doctor", help="print versions, CPUs and GPUs, and what would stop a run")
    return parser


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes positionals in one go, so it leaves over the overrides that follow an option.
    unknown = [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]
    if unknown:
        parser.error(f"unknown argument {unknown[0]}")
    if rest:
        arguments.overrides += rest
    if arguments.command is None:
        parser.print_help()
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    _quiet()
    match arguments.command:
        case "train":
            return _train(arguments.recipe, arguments.overrides, arguments.dry_run)
        case "resume":
            return _resume(arguments.run_dir, arguments.overrides)
        case "report":
            return _report(arguments.run_dir)
        case "replay":
            return _replay(arguments.run_dir, arguments.verify)
        case "doctor":
            from asyncrl.observe.doctor import doctor

            return doctor()
    return 0


def _train(path: Path, overrides: list[str], dry_run: bool) -> int:
    from asyncrl.recipe.check import check
    from asyncrl.recipe.load import dump, load

    base_dir = Path.cwd()
    recipe = load(path, overrides)
    check(recipe, base_dir)
    if dry_run:
        print(dump(recipe), *_sizes(recipe), "ok", sep="\n")
        return 0
    from asyncrl.runtime.run import train

    return train(recipe, path.stem, base_dir)


def _sizes(recipe: Recipe) -> list[str]:
    """How large each loop of the run is, and the bound on staleness."""
    from asyncrl.control.staleness import slots, worst_case
    from asyncrl.recipe.load import control_settings

    settings = control_settings(recipe)
    rollout, trainer = recipe.rollout, recipe.trainer
    groups, num_slots = recipe.groups_per_step, slots(settings)
    return [
        f"slots      {num_slots} groups under way = (max_staleness {recipe.max_staleness} + 1) x {groups} per step"
        + (f" + {recipe.backup_groups} backup" if recipe.backup_groups else ""),
        f"staleness  no trained token is older than {worst_case(settings)} update(s) "
        f"(policy {recipe.policy}, over_age {recipe.over_age})",
        f"episodes   up to {num_slots * recipe.group_size} rollouts of <= {rollout.max_new_tokens} tokens "
        f"on {rollout.replicas} x {rollout.engine} ({_device(rollout.gpus_per_replica)})",
        f"buffer     up to {num_slots} groups of {recipe.group_size}, in the journal (keep {recipe.journal.keep})",
        f"trainer    {recipe.max_steps} steps of {groups * recipe.group_size} trajectories, "
        f"<= {trainer.tokens_per_microbatch} tokens at once on {trainer.ranks} rank ({_device(trainer.gpus_per_rank)})",
        f"weights    {recipe.max_steps} pushes in {recipe.weights.dtype}, channel {recipe.weights.channel}",
    ]


def _device(num_gpus: int) -> str:
    return f"{num_gpus} GPU" if num_gpus else "CPU"


def _resume(run_dir: Path, overrides: list[str]) -> int:
    _check_run_dir(run_dir)
    from asyncrl.runtime.run import resume

    return resume(run_dir, overrides)


def _report(run_dir: Path) -> int:
    _check_run_dir(run_dir)
    from asyncrl.observe.report import write_report

    print(write_report(run_dir))
    return 0


def _replay(run_dir: Path, verify: bool) -> int:
    _check_run_dir(run_dir)
    from asyncrl.runtime.replay import replay_run

    found = replay_run(run_dir.resolve(), verify)
    print(f"history    {found.num_entries} entries; every decision comes out again")
    print(f"batches    steps {found.steps.start} to {found.steps.stop - 1}: {found.trained} groups, none twice")
    if verify:
        versions = ", ".join(map(str, found.compared))
        print(f"weights    versions {versions} trained again: bit for bit as in their checkpoints")
    return 0


def _check_run_dir(run_dir: Path) -> None:
    if not (run_dir / "recipe.yaml").is_file():
        fault = "has no recipe.yaml" if run_dir.exists() else "does not exist"
        raise UserError(f"{run_dir} is not a run directory: it {fault}")


def _quiet() -> None:
    """Only asyncrl speaks, unless the environment asks a library to."""
    for name, value in _SILENCE.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("asyncrl").setLevel(logging.INFO)
