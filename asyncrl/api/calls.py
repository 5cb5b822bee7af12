"""The commands as functions: `train`, `resume`, `evaluate`. They take what a recipe file and `key=value` take, and
Python objects where those name code; they raise what the commands say (`asyncrl.errors`)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from asyncrl.api import objects
from asyncrl.api.callbacks import Callback, Told
from asyncrl.api.run import Run
from asyncrl.cli.evaluating import scored
from asyncrl.cli.quiet import quiet
from asyncrl.errors import UserError
from asyncrl.orchestrator.loop import Hooks
from asyncrl.orchestrator.run import resume as resume_run
from asyncrl.orchestrator.run import train as train_recipe
from asyncrl.recipe.check import check
from asyncrl.recipe.load import dump, load
from asyncrl.recipe.paths import leaves
from asyncrl.recipe.schema import Recipe
from asyncrl.recipe.stored import load_stored

if TYPE_CHECKING:
    import pandas as pd

Keys = Mapping[str, Any]
_WHOLE = ("data", "eval", "reward")
"""Keys whose value takes the place of what is there."""


def recipe_of(recipe: Recipe | str | Path | Keys, keys: Keys) -> Recipe:
    """A recipe, the path of a file, or its keys as a mapping, with `keys` over it: nested, or with dots in their names.
    Raises UserError as the command does."""
    overrides = _overrides(keys)
    if isinstance(recipe, str | Path):
        return load(Path(recipe), overrides)
    text = dump(recipe) if isinstance(recipe, Recipe) else _yaml(objects.named(recipe))
    return load(Path("recipe.yaml"), overrides, text)


def train(recipe: Recipe | str | Path | Keys, *, callbacks: Sequence[Callback] = (), **keys: Any) -> Run:
    """Run a recipe to its end. Functions and classes may stand where a recipe names code (`reward=my_function`).

    In a notebook an interrupt finishes the step and saves; a second one ends the run at once. Raises UserError for bad
    input, RunFailed if the run cannot go on.
    """
    quiet()
    hooks = _hooks(callbacks)
    checked, base_dir = recipe_of(recipe, keys), Path.cwd()
    check(checked, base_dir)
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "python"
    return Run(train_recipe(checked, name, base_dir, hooks))


def resume(
    run_dir: str | Path | Run,
    *,
    callbacks: Sequence[Callback] = (),
    accept: Sequence[str] = (),
    trust: bool = False,
    **keys: Any,
) -> Run:
    """Go on from a run's newest checkpoint; `accept` and `trust` as the options of `asyncrl resume`."""
    quiet()
    run = run_dir if isinstance(run_dir, Run) else Run(run_dir)
    changed, stored = load_stored(run.dir, _overrides(keys), trust)
    return Run(resume_run(run.dir, changed, stored, accept, _hooks(callbacks)))


def evaluate(
    model: str | Path | Run,
    recipe: Recipe | str | Path | Keys | None = None,
    *,
    out: str | Path | None = None,
    trust: bool = False,
    **keys: Any,
) -> pd.DataFrame:
    """Score a model, or the newest checkpoint of a run, on the held-out tasks of a recipe (default: the run's): a row
    for each of its evaluations. `out`: folder for scores and completions."""
    import pandas as pd

    quiet()
    run = model if isinstance(model, Run) else Run(model) if (Path(model) / "recipe.yaml").exists() else None
    if recipe is None and run is not None:
        chosen, _ = load_stored(run.dir, _overrides(keys), trust)
    elif recipe is None:
        raise TypeError(f"{model} is no run: name the recipe whose evaluations are wanted")
    else:
        chosen = recipe_of(recipe, keys)
    folder = run.model if run is not None else model
    version = max(run.checkpoints) if run is not None else 0
    place = Path(out) if out else run.dir if run is not None else Path(f"runs/eval-{time.strftime('%Y%m%d-%H%M%S')}")
    return pd.DataFrame(scored(chosen, str(folder), version, place))


def _overrides(keys: Keys) -> list[str]:
    """`key=value` for each; a mapping is merged into what is there, but for parts that a list may stand for."""
    named = {key: objects.named(value) for key, value in keys.items()}
    places = [[(key, value)] if key in _WHOLE else leaves(value, key) for key, value in named.items()]
    return [f"{key}={_flow(value)}" for place in places for key, value in place]


def _flow(value: Any) -> str:
    """YAML on a line, as the command line takes it."""
    return _yaml(value, default_flow_style=True, width=10**9).removesuffix("...\n").strip()


def _yaml(value: Any, **options: Any) -> str:
    try:
        text: str = yaml.safe_dump(value, **options)
    except yaml.YAMLError as error:
        raise UserError(
            f"a recipe takes numbers, texts, lists, mappings and functions, not {error.args[-1]!r:.200}"
        ) from error
    return text


def _hooks(callbacks: Sequence[Callback]) -> Hooks:
    each = [callbacks] if isinstance(callbacks, Callback) else callbacks
    if unfit := [one for one in each if not isinstance(one, Callback)]:
        raise TypeError(f"callbacks must be Callback objects, not {type(unfit[0]).__name__}")

    def maker(callback: Callback) -> Any:
        return lambda run_dir, stop: Told(callback, Run(run_dir, stop))

    return Hooks({f"callback {type(one).__name__} {place}": maker(one) for place, one in enumerate(each, 1)})
