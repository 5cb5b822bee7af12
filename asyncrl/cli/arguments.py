"""The words of the command line: commands, options and what they may be. `cli.py` says what is done with them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import asyncrl
from asyncrl.errors import UserError
from asyncrl.orchestrator.kinds import KINDS

TYPES = ("bfloat16", "float16", "float32")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Raises UserError for what it does not know. Prints the version or the help if that is all that is asked."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes positionals in one go, so it leaves over the overrides that follow an option.
    unknown = [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]
    if unknown:
        parser.error(f"unknown argument {unknown[0]}")
    if rest:
        arguments.overrides += rest
    if arguments.version:
        print(f"asyncrl {asyncrl.__version__}")
    elif arguments.command is None:
        parser.print_help()
    return arguments


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _parser() -> _Parser:
    parser = _Parser(prog="asyncrl", description="Asynchronous RL post-training of language models on Ray.")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run_dir_help = "a directory that `asyncrl train` made, or its URL"

    train = commands.add_parser("train", help="run a recipe", usage="asyncrl train RECIPE [key=value ...] [options]")
    _add_recipe(train)
    _add_start(train)

    sft = commands.add_parser(
        "sft",
        help="train on answers in the data: demonstrations, or preference pairs",
        usage="asyncrl sft RECIPE [key=value ...] [options]",
        description="As `asyncrl train` with rollout.engine=data, which a recipe may say itself.",
    )
    _add_recipe(sft)
    _add_start(sft)

    recipes = commands.add_parser(
        "recipes", help="list the recipes that come with asyncrl, or copy one", usage="%(prog)s [copy NAME [DIR]]"
    )
    actions = recipes.add_subparsers(dest="action", metavar="copy", prog="asyncrl recipes")
    copy = actions.add_parser("copy", help="copy a recipe and the code that it names")
    copy.add_argument("name", metavar="NAME", help="as `asyncrl recipes` lists it")
    copy.add_argument("folder", metavar="DIR", type=Path, nargs="?", default=Path(), help="where to (default: here)")

    resume = commands.add_parser(
        "resume",
        help="go on from a run's newest checkpoint",
        usage="asyncrl resume RUN_DIR [key=value ...] [--accept KIND[,KIND]] [--trust]",
    )
    resume.add_argument("run_dir", metavar="RUN_DIR", help=run_dir_help)
    _add_overrides(resume)
    _add_trust(resume)
    resume.add_argument(
        "--accept",
        type=_kinds,
        default=[],
        metavar="KIND[,KIND]",
        help=f"go on although these differ from what the run was begun with: {', '.join(KINDS)}",
    )

    sweep = commands.add_parser(
        "sweep",
        help="run a recipe with every combination of some values",
        usage="asyncrl sweep RECIPE key=[a,b,...] [key=value ...] [--out DIR] [--jobs N]",
        epilog="exit code 1: a run failed; the same command with --out goes on with what is not done",
    )
    _add_recipe(sweep)
    sweep.add_argument("--out", type=Path, metavar="DIR", help="its runs (default: runs/sweep-RECIPE-TIME)")
    sweep.add_argument("--jobs", type=_count, default=1, metavar="N", help="runs side by side (default: 1)")

    evaluate = commands.add_parser(
        "eval",
        help="score a model, or a run's checkpoint, on a recipe's held-out tasks",
        usage="asyncrl eval MODEL|RUN_DIR[@STEP] [key=value ...] [--recipe RECIPE] [--out DIR] [--trust]",
        epilog="exit code 1: an evaluation has no score",
    )
    evaluate.add_argument("model", metavar="MODEL|RUN_DIR[@STEP]", help="a model's folder or hub name, or a run's")
    _add_overrides(evaluate)
    evaluate.add_argument(
        "--recipe", type=Path, metavar="RECIPE", help="whose `eval` and `rollout` count (default: the run's)"
    )
    evaluate.add_argument(
        "--out", type=Path, metavar="DIR", help="where the scores go (default: RUN_DIR, or runs/eval-MODEL-TIME)"
    )
    _add_trust(evaluate)

    plan = commands.add_parser(
        "plan",
        help="how much memory a recipe takes on GPUs, how fast it would be, and how best to divide them",
        usage="asyncrl plan RECIPE [key=value ...] [--gpus N] [--gpu NAME] [--profile RUN_DIR] [--mean-tokens N]",
    )
    _add_recipe(plan)
    plan.add_argument(
        "--gpus", type=_whole, metavar="N", help="in all; 0: the recipe on CPUs (default: what the recipe asks for)"
    )
    plan.add_argument("--gpu", metavar="NAME", default="H100", help="which, such as A100-80GB (default: H100)")
    plan.add_argument(
        "--profile", metavar="RUN_DIR", help="a run whose speeds and lengths count instead of assumed ones"
    )
    plan.add_argument("--mean-tokens", type=_count, metavar="N", help="of a completion, without a profile")

    data = commands.add_parser(
        "data",
        help="show what the model will see: prompts as they are tokenised, lengths, shares of sources",
        usage="asyncrl data RECIPE [key=value ...] [-n N]",
    )
    _add_recipe(data)
    data.add_argument("-n", dest="number", type=_count, default=3, metavar="N", help="tasks to show (default: 3)")

    submit = commands.add_parser(
        "submit",
        help="run a recipe on a Ray cluster, or write the file that starts one",
        usage="asyncrl submit RECIPE [key=value ...] [--address URL | --slurm | --kuberay] [options]",
    )
    _add_recipe(submit)
    where = submit.add_mutually_exclusive_group()
    _add_address(where)
    where.add_argument("--slurm", action="store_true", help="print a script for sbatch")
    where.add_argument("--kuberay", action="store_true", help="print a manifest for kubectl apply")
    submit.add_argument("--detach", action="store_true", help="do not follow the job's log")
    submit.add_argument("--nodes", type=_count, metavar="N", help="nodes to start (default: what the GPUs take)")
    submit.add_argument("--gpus-per-node", type=_count, default=8, metavar="N", help="of the cluster (default: 8)")
    submit.add_argument("--image", help="container image with asyncrl in it (default: asyncrl:latest)")
    submit.add_argument("--claim", help="PersistentVolumeClaim of storage that all pods mount at /shared")

    for command, text in (
        ("attach", "follow the log of a submitted job"),
        ("stop", "end a submitted job after its step"),
    ):
        parser_of_job = commands.add_parser(command, help=text)
        parser_of_job.add_argument("job", metavar="JOB", help="its name, as `asyncrl submit` said it")
        _add_address(parser_of_job)

    report = commands.add_parser(
        "report", help="write a run's report.html", usage="asyncrl report RUN_DIR [--out FILE]"
    )
    report.add_argument("run_dir", metavar="RUN_DIR", help=run_dir_help)
    report.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page (default: RUN_DIR/report.html; NAME.html here if the directory is another user's)",
    )

    watch = commands.add_parser(
        "watch", help="serve the report as a page that follows the run, or all runs of a folder"
    )
    watch.add_argument("run_dir", metavar="RUN_DIR", help=f"{run_dir_help}; or a folder with several, such as runs/")
    watch.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    watch.add_argument("--port", type=_port, default=8642, help="port to listen at (default: 8642; 0: any free one)")

    compare = commands.add_parser(
        "compare", help="one page with the curves of one run or more", usage="asyncrl compare RUN_DIR ... [--out FILE]"
    )
    compare.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help=run_dir_help)
    compare.add_argument("--out", type=Path, metavar="FILE", help="the page, written anew (default: compare.html here)")

    inspect = commands.add_parser(
        "inspect", help="list, show or export a run's trajectories", epilog="exit code 1: there is no such trajectory"
    )
    inspect.add_argument("run_dir", metavar="RUN_DIR", help=run_dir_help)
    inspect.add_argument("--task", type=int, metavar="N", help="only those of this task")
    inspect.add_argument("--reward", metavar="LOW:HIGH", help="only rewards in this range; either end may be left out")
    inspect.add_argument("--age", metavar="LOW:HIGH", help="only trained ones of this age, in updates")
    inspect.add_argument("--limit", type=_count, default=20, metavar="N", help="at most so many (default: 20)")
    inspect.add_argument("--show", action="store_true", help="whole texts, coloured by version")
    inspect.add_argument("--export", type=Path, metavar="FILE", help="write all of them to a parquet file")

    export = commands.add_parser(
        "export",
        help="write a checkpoint as a model folder to hand over",
        usage="asyncrl export RUN_DIR[@STEP] [--out DIR] [--merge | --adapter] [--ema] [--dtype TYPE]",
    )
    export.add_argument(
        "checkpoint", metavar="RUN_DIR[@STEP]", help=f"{run_dir_help}, and a step (default: the newest)"
    )
    export.add_argument("--out", type=Path, metavar="DIR", help="the folder, which is made (default: RUN-step-N here)")
    form = export.add_mutually_exclusive_group()
    form.add_argument("--merge", action="store_true", help="LoRA: adapters merged into the base model (the default)")
    form.add_argument("--adapter", action="store_true", help="LoRA: the adapters alone, as PEFT has them")
    export.add_argument("--ema", action="store_true", help="the running mean of the weights (trainer.ema)")
    export.add_argument(
        "--dtype", choices=TYPES, metavar="TYPE", help=f"{', '.join(TYPES)} (default: the run's weights.dtype)"
    )

    replay = commands.add_parser(
        "replay", help="check a run against its journal", usage="asyncrl replay RUN_DIR [--verify] [--trust]"
    )
    replay.add_argument("run_dir", metavar="RUN_DIR", help=run_dir_help)
    _add_trust(replay)
    replay.add_argument(
        "--verify", action="store_true", help="train the journalled batches again and compare with every checkpoint"
    )

    doctor = commands.add_parser("doctor", help="print versions, CPUs and GPUs, and what would stop a run")
    doctor.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE", help="try its model's attention too")
    return parser


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"'{unknown[0]}' is not one of {', '.join(KINDS)}")
    return kinds


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number greater than 0")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 on")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port, 0 to 65535")
    return int(text)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="a YAML file, such as recipes/tiny.yaml")
    _add_overrides(parser)


def _add_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="check and print the resolved recipe, run nothing")
    parser.add_argument("--or-resume", action="store_true", help="if run_dir has this run already, take it up")


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    text = "recipe keys to change, such as trainer.learning_rate=1e-5"
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=text)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    text = "run what the directory names although it came from a URL, or others may have written it"
    parser.add_argument("--trust", action="store_true", help=text)


def _add_address(parser: argparse._ActionsContainer) -> None:
    default = "http://127.0.0.1:8265"
    parser.add_argument(
        "--address", metavar="URL", default=default, help=f"dashboard of the cluster (default: {default})"
    )
