"""Whether evaluations can say something: names that tell them apart, tasks that are not trained."""

from __future__ import annotations

from asyncrl.errors import UserError, nearest
from asyncrl.recipe.evaluation import EvalRecipe
from asyncrl.recipe.schema import Recipe

_SCORES = ("accuracy", "reward")


def _of_score(recipe: Recipe, key: str, metric: str) -> EvalRecipe:
    """The evaluation that gives it. Raises UserError if there is none."""
    name, _, score = metric.removeprefix("eval/").rpartition("/")
    part = next((part for part in recipe.eval if part.name == name and metric.startswith("eval/")), None)
    known = [f"eval/{part.name}/{score}" for part in recipe.eval for score in _SCORES]
    if part is None or not (score in _SCORES or score.startswith("pass_at_")):
        raise UserError(
            f"{key}: there is no score {metric}{nearest(metric, known)}; the recipe's evaluations have "
            f"{', '.join(known) or 'none: it has no eval'}"
        )
    return part


def check_best(recipe: Recipe, metric: str) -> None:
    """Raises UserError unless the checkpoints have the score of an evaluation."""
    part = _of_score(recipe, "checkpoint.keep_best", metric)
    saved = recipe.checkpoint.every_steps
    if saved % part.every_steps:
        raise UserError(
            f"checkpoint.keep_best is {metric}, which is known every {part.every_steps} steps, but checkpoints are "
            f"made every {saved}; make checkpoint.every_steps a multiple of eval.every_steps"
        )


def check_evaluations(recipe: Recipe, trains: bool = True) -> None:
    """Raises UserError. The training data may be evaluated by itself: how hard its rows are."""
    if recipe.early_stop is not None:
        _of_score(recipe, "early_stop.metric", recipe.early_stop.metric)
    names = [part.name for part in recipe.eval]
    for place, part in enumerate(recipe.eval):
        key = f"eval.{place}"
        if part.name in names[:place]:
            raise UserError(f"{key}.name: another evaluation is called {part.name}; give each a name of its own")
        data = part.data
        if data.online_success_rate is not None:
            raise UserError(
                f"{key}.data.online_success_rate is for training, and an evaluation has no epochs; leave it out"
            )
        trained = [*recipe.sources, *([sft.data] if (sft := recipe.algorithm.sft) else [])]
        if trains and any((data.path, data.split, data.options) == (s.path, s.split, s.options) for s in trained):
            raise UserError(
                f"{key}.data is the training data; name held-out tasks: another file or split, or another seed in "
                f"{key}.data.options"
            )
        if part.reward is None and recipe.env is None and not recipe.reward_parts:
            raise UserError(f"{key} has no reward, and the recipe has none; name the reward of this evaluation")
        if part.n > 1 and recipe.evaluated(part).temperature == 0:
            raise UserError(
                f"{key}.n is {part.n}, but at temperature 0 all rollouts of a task are the same; set {key}.n=1, or a "
                "temperature above 0"
            )
