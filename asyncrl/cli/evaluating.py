"""`asyncrl eval`: which weights, by which recipe, and where the scores go."""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncrl.cli.common import check_run_dir, importing, local, of_step, say
from asyncrl.cli.running import loaded
from asyncrl.errors import UserError

if TYPE_CHECKING:
    from asyncrl.recipe.schema import Recipe


def evaluate(arguments: argparse.Namespace) -> int:
    """Exit code 0 if every evaluation has a score, else 1."""
    if arguments.lm_eval:
        return _by_lm_eval(arguments)
    if arguments.passed_on:
        raise UserError("what follows -- is for lm_eval; name its tasks with --lm-eval TASK[,TASK...]")
    target = _of_run(arguments) or _of_model(arguments)
    lines, out = scored(*target), target[-1]
    say(f"scores: {out / 'evaluations.jsonl'}, completions: {out / 'evaluations'}")
    return 0 if all(line["reward"] is not None for line in lines) else 1


def scored(recipe: Recipe, model: str, version: int, out: Path) -> list[dict[str, Any]]:
    """The lines of every evaluation of the recipe on this model, written to `out`. Raises UserError as the command
    says."""
    from asyncrl.recipe.check import check

    base_dir, recipe = Path.cwd(), recipe.for_evaluation(model)
    if not recipe.eval:
        raise UserError("the recipe has no evaluation; add `eval: {data: {path: ...}}` to it (docs/evaluation.md)")
    check(recipe, base_dir, trains=False)
    with importing(for_a_run=False):
        from asyncrl.orchestrator import evaluate as evaluation
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    return evaluation.evaluate(recipe, version, out, base_dir)


def _by_lm_eval(arguments: argparse.Namespace) -> int:
    """Tasks of lm-evaluation-harness."""
    recipe, model, version, out = _of_run(arguments) or _of_model(arguments)
    from asyncrl.observe.lm_eval import FILE, HEADS, cells
    from asyncrl.orchestrator import lm_eval

    recipe = recipe.for_evaluation(model)
    lm_eval.check(recipe, arguments.lm_eval, arguments.passed_on)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = Path(arguments.model.rstrip("/")).name
    lines = lm_eval.evaluate(recipe, version, name, arguments.lm_eval, arguments.passed_on, out)
    rows = [HEADS, *map(cells, lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    say(f"lm_eval {lines[0]['lm_eval']} of {name}, version {version}")
    say(*("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows))
    say(f"scores: {out / FILE}, results and logs of lm_eval: {out / lines[0]['results']}")
    return 0


_Target = tuple["Recipe", str, int, Path]


def _of_run(arguments: argparse.Namespace) -> _Target | None:
    """A run directory, or RUN_DIR@STEP; None: the target is a model."""
    name, step = of_step(arguments.model)
    if not (Path(name) / "recipe.yaml").exists() and "://" not in name:
        return None
    run_dir = local(name, whole=True)
    check_run_dir(run_dir)
    from asyncrl.recipe.stored import load_stored
    from asyncrl.storage.atomic import chosen, step_of

    recipe, _ = load_stored(run_dir, [] if arguments.recipe else arguments.overrides, arguments.trust)
    if arguments.recipe:
        recipe = loaded(arguments.recipe, arguments.overrides)
    checkpoint = chosen(run_dir, step)
    return recipe, str(checkpoint / "model"), step_of(checkpoint), arguments.out or run_dir


def _of_model(arguments: argparse.Namespace) -> _Target:
    if arguments.recipe is None and not arguments.lm_eval:
        raise UserError(
            f"{arguments.model} is no run directory; name the recipe whose evaluations are wanted with --recipe"
        )
    name = re.sub(r"[^\w.-]", "-", arguments.model.rstrip("/").rpartition("/")[2])
    out = arguments.out or Path(f"runs/eval-{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    recipe = loaded(arguments.recipe, arguments.overrides) if arguments.recipe else _of_nothing_else(arguments)
    return recipe, arguments.model, 0, out


def _of_nothing_else(arguments: argparse.Namespace) -> Recipe:
    """For a model whose tasks lm_eval has: how it is served, on a GPU where there is one. Its data is not read."""
    from asyncrl.drafts.machine import here
    from asyncrl.recipe.load import load

    model, data = json.dumps(arguments.model), "{path: 'reasoning_gym:chain_sum'}"
    served = f"{{gpus_per_replica: {min(1, here().num_gpus)}}}"
    text = f"model: {model}\ndata: {data}\nreward: asyncrl.rewards.math:last_number\nmax_steps: 1\nrollout: {served}\n"
    return load(Path("recipe.yaml"), arguments.overrides, text)
