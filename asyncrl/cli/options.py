"""Every command and its options, and what they may be."""

from __future__ import annotations

import argparse
from pathlib import Path

from asyncrl.orchestrator.kinds import KINDS

Commands = argparse._SubParsersAction  # type: ignore[type-arg]
TYPES = ("bfloat16", "float16", "float32")
_RUN_DIR = "a directory that `asyncrl train` made, or its URL"


def add_all(commands: Commands) -> None:
    for add in (_begin, _train, _foresee, _look, _use, _cluster):
        add(commands)


def _begin(commands: Commands) -> None:
    """Recipes to begin with, and what is here."""
    new = commands.add_parser(
        "new",
        help="write a recipe for your data, and try its reward",
        usage="asyncrl new NAME --data FILE [--reward FILE] [--env FILE] [--model MODEL] [key=value ...]",
        description="Writes NAME.yaml, and NAME_reward.py if no reward is named and the rows have answers; nothing is "
        "written over.",
    )
    new.add_argument("name", metavar="NAME", help="of the recipe: NAME.yaml")
    new.add_argument("--data", metavar="FILE", required=True, help="rows with prompts: .jsonl, .csv, .parquet, ...")
    new.add_argument("--reward", metavar="FILE", help="FILE.py, FILE.py:NAME or package.module:NAME that judges")
    new.add_argument("--env", metavar="FILE", help="FILE.py, FILE.py:NAME or package.module:NAME: an agent's episodes")
    new.add_argument("--model", metavar="MODEL", help="a folder or a hub name (default: one that fits the machine)")
    _add_overrides(new)

    convert = commands.add_parser(
        "import",
        help="write a recipe from a TRL script or verl configuration",
        usage="asyncrl import trl|verl FILE [key=value ...] [--out RECIPE] [--processes N]",
        description="Reads the file, runs nothing of it, and says of every name what became of it.",
    )
    convert.add_argument("system", metavar="trl|verl", choices=("trl", "verl"), help="whose file it is")
    convert.add_argument(
        "file", metavar="FILE", type=Path, help="a Python script, a YAML, or a shell script with key=value"
    )
    convert.add_argument(
        "--out", metavar="RECIPE", type=Path, help="the recipe (default: FILE's name here, with .yaml)"
    )
    convert.add_argument(
        "--processes", metavar="N", type=_count, default=1, help="that a TRL script is launched with (default: 1)"
    )
    _add_overrides(convert)

    recipes = commands.add_parser(
        "recipes", help="list the recipes that come with it, or copy one", usage="%(prog)s [copy NAME [DIR]]"
    )
    actions = recipes.add_subparsers(dest="action", metavar="copy", prog="asyncrl recipes")
    copy = actions.add_parser("copy", help="copy a recipe and the code that it names")
    copy.add_argument("name", metavar="NAME", help="as `asyncrl recipes` lists it")
    copy.add_argument("folder", metavar="DIR", type=Path, nargs="?", default=Path(), help="where to (default: here)")

    doctor = commands.add_parser("doctor", help="versions, CPUs, GPUs, and what would stop a run")
    doctor.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE", help="try its model's attention too")

    completion = commands.add_parser(
        "completion",
        help="print what makes TAB complete commands, options and keys",
        description='For this shell: `eval "$(asyncrl completion bash)"`; for all: the same line in ~/.bashrc.',
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="which")


def _train(commands: Commands) -> None:
    """What starts a run, or takes one up."""
    train = commands.add_parser(
        "train",
        help="run a recipe (--dry-run: check it, run nothing)",
        usage="asyncrl train RECIPE [key=value ...] [options]",
    )
    _add_recipe(train)
    _add_start(train)

    sft = commands.add_parser(
        "sft",
        help="train on answers in the data: demonstrations, pairs",
        usage="asyncrl sft RECIPE [key=value ...] [options]",
        description="As `asyncrl train` with rollout.engine=data, which a recipe may say itself.",
    )
    _add_recipe(sft)
    _add_start(sft)

    resume = commands.add_parser(
        "resume",
        help="go on from a run's newest checkpoint",
        usage="asyncrl resume RUN_DIR [key=value ...] [--accept KIND[,KIND]] [--trust]",
    )
    resume.add_argument("run_dir", metavar="RUN_DIR", help=_RUN_DIR)
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
        help="run a recipe with each of several values",
        usage="asyncrl sweep RECIPE key=[a,b,...] [key=value ...] [--out DIR] [--jobs N]",
        epilog="exit code 1: a run failed; the same command with --out goes on with what is not done",
    )
    _add_recipe(sweep)
    sweep.add_argument("--out", type=Path, metavar="DIR", help="its runs (default: runs/sweep-RECIPE-TIME)")
    sweep.add_argument("--jobs", type=_count, default=1, metavar="N", help="runs side by side (default: 1)")


def _foresee(commands: Commands) -> None:
    """What says how a run would be."""
    data = commands.add_parser(
        "data",
        help="show prompts as the model will see them, and lengths",
        usage="asyncrl data RECIPE [key=value ...] [-n N]",
    )
    _add_recipe(data)
    data.add_argument("-n", dest="number", type=_count, default=3, metavar="N", help="tasks to show (default: 3)")

    plan = commands.add_parser(
        "plan",
        help="how much memory it takes, how fast it would be on GPUs",
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


def _look(commands: Commands) -> None:
    """What looks at runs."""
    report = commands.add_parser(
        "report", help="write a run's report.html", usage="asyncrl report RUN_DIR [--out FILE]"
    )
    report.add_argument("run_dir", metavar="RUN_DIR", help=_RUN_DIR)
    report.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page (default: RUN_DIR/report.html; NAME.html here if the directory is another user's)",
    )

    watch = commands.add_parser("watch", help="follow a run, or all of a folder, on a page that is served")
    watch.add_argument("run_dir", metavar="RUN_DIR", help=f"{_RUN_DIR}; or a folder with several, such as runs/")
    watch.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    watch.add_argument("--port", type=_port, default=8642, help="port to listen at (default: 8642; 0: any free one)")

    compare = commands.add_parser(
        "compare", help="one page with the curves of several runs", usage="asyncrl compare RUN_DIR ... [--out FILE]"
    )
    compare.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help=_RUN_DIR)
    compare.add_argument("--out", type=Path, metavar="FILE", help="the page, written anew (default: compare.html here)")

    inspect = commands.add_parser(
        "inspect", help="list, show or export a run's trajectories", epilog="exit code 1: there is no such trajectory"
    )
    inspect.add_argument("run_dir", metavar="RUN_DIR", help=_RUN_DIR)
    inspect.add_argument("--task", type=int, metavar="N", help="only those of this task")
    inspect.add_argument("--reward", metavar="LOW:HIGH", help="only rewards in this range; either end may be left out")
    inspect.add_argument("--age", metavar="LOW:HIGH", help="only trained ones of this age, in updates")
    inspect.add_argument("--limit", type=_count, default=20, metavar="N", help="at most so many (default: 20)")
    inspect.add_argument("--show", action="store_true", help="whole texts, coloured by version")
    inspect.add_argument("--export", type=Path, metavar="FILE", help="write all of them to a parquet file")

    replay = commands.add_parser(
        "replay", help="check a run against its journal", usage="asyncrl replay RUN_DIR [--verify] [--trust]"
    )
    replay.add_argument("run_dir", metavar="RUN_DIR", help=_RUN_DIR)
    _add_trust(replay)
    replay.add_argument(
        "--verify", action="store_true", help="train the journalled batches again and compare with every checkpoint"
    )


def _use(commands: Commands) -> None:
    """What is done with a trained model."""
    evaluate = commands.add_parser(
        "eval",
        help="score a model or checkpoint on held-out tasks",
        usage="asyncrl eval MODEL|RUN_DIR[@STEP] [key=value ...] [--recipe RECIPE] [--out DIR] [--trust]\n"
        "       asyncrl eval ... --lm-eval TASK[,TASK...] [-- OPTION_OF_LM_EVAL ...]",
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
    evaluate.add_argument(
        "--lm-eval",
        type=_tasks,
        default=[],
        metavar="TASK[,TASK...]",
        help="tasks of lm-evaluation-harness instead; what follows -- is for it, such as -- --num_fewshot 5",
    )
    evaluate.set_defaults(passed_on=[])
    _add_trust(evaluate)

    export = commands.add_parser(
        "export",
        help="write a checkpoint as a model folder to hand over",
        usage="asyncrl export RUN_DIR[@STEP] [--out DIR] [--merge | --adapter] [--ema] [--dtype TYPE] [--push REPO]",
    )
    export.add_argument("checkpoint", metavar="RUN_DIR[@STEP]", help=f"{_RUN_DIR}, and a step (default: the newest)")
    export.add_argument("--out", type=Path, metavar="DIR", help="the folder, which is made (default: RUN-step-N here)")
    form = export.add_mutually_exclusive_group()
    form.add_argument("--merge", action="store_true", help="LoRA: adapters merged into the base model (the default)")
    form.add_argument("--adapter", action="store_true", help="LoRA: the adapters alone, as PEFT has them")
    export.add_argument("--ema", action="store_true", help="the running mean of the weights (trainer.ema)")
    export.add_argument(
        "--dtype", choices=TYPES, metavar="TYPE", help=f"{', '.join(TYPES)} (default: the run's weights.dtype)"
    )
    export.add_argument("--push", metavar="REPO", help="upload it to this repository of the hub, private if it is new")


def _cluster(commands: Commands) -> None:
    """Runs elsewhere."""
    submit = commands.add_parser(
        "submit",
        help="run it on a Ray cluster, or write a Slurm or Kubernetes file",
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


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"'{unknown[0]}' is not one of {', '.join(KINDS)}")
    return kinds


def _tasks(text: str) -> list[str]:
    tasks = text.split(",")
    if not all(tasks):
        raise argparse.ArgumentTypeError(f"'{text}' has a task without a name")
    return tasks


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
