"""The part of a recipe that names held-out tasks to evaluate on while training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from asyncrl.recipe.data import DataRecipe
from asyncrl.recipe.part import Part, PositiveInt
from asyncrl.recipe.rewards import Reward


class EvalRecipe(Part):
    data: DataRecipe
    """Held-out tasks, in the order of the file; the training data itself is refused. How prompts are made of the rows
    (prompt_column, chat, system, chat_template_kwargs) is as in `data`, unless it is said here."""
    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]{1,64}$")] = ""
    """Of its metrics, eval/NAME/...; default: the name of the data."""
    reward: Reward | None = None
    """A function, or a list with weights, as the recipe's; default: the recipe's."""
    every_steps: PositiveInt = 10
    """Training steps between evaluations; the untrained and the last weights are always evaluated."""
    n: PositiveInt = 1
    """Rollouts per task; with more than one, pass@k is given for k up to n."""
    max_tasks: PositiveInt | None = None
    """Only so many tasks, the first ones; default: all."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """Sampling temperature; 0: the most likely token; default: that of the rollouts."""
    max_new_tokens: PositiveInt | None = None
    """Longest completion, in tokens; default: that of the rollouts."""


class EarlyStopRecipe(Part):
    metric: str
    """Score of an evaluation, such as eval/NAME/accuracy."""
    patience: PositiveInt | None = None
    """Evaluations in a row that are not better than the best one, after which the run ends."""
    target: float | None = None
    """The run ends when the score has come so far."""

    @model_validator(mode="after")
    def _says_when(self) -> EarlyStopRecipe:
        if self.patience is None and self.target is None:
            raise PydanticCustomError("early_stop", "neither `patience` nor `target` is set; say when the run ends")
        return self


OF_TEMPLATE = ("chat", "system", "chat_template_kwargs")
_OF_PROMPTS = ("prompt_column", *OF_TEMPLATE)


def alike(
    parts: Any, training: Any, keys: Sequence[str] = _OF_PROMPTS, whose: str = "the data of each evaluation"
) -> Any:
    """Evaluations, or other parts with `data`, whose prompts are made as those of the training data, unless they say
    otherwise."""
    sources = [training] if isinstance(training, Mapping) else training
    if not isinstance(sources, list) or not all(isinstance(source, Mapping) for source in sources):
        return parts
    said = {key: sources[0][key] for key in keys if key in sources[0]}
    differ = [key for key in keys if any(source.get(key) != sources[0].get(key) for source in sources)]

    def one(part: Any) -> Any:
        data = part.get("data") if isinstance(part, Mapping) else None
        if isinstance(data, Mapping) and (open_keys := [key for key in differ if key not in data]):
            raise PydanticCustomError(
                "eval_prompts",
                "the sources of `data` make their prompts differently; say {keys} in {whose}",
                {"keys": ", ".join(open_keys), "whose": whose},
            )
        return {**part, "data": {**said, **data}} if isinstance(data, Mapping) else part

    return one(parts) if isinstance(parts, Mapping) else [*map(one, parts)] if isinstance(parts, list) else parts


def named(parts: Any) -> Any:
    """A single part as a list, and each with a name."""
    parts = [] if parts is None else [parts] if isinstance(parts, dict) else parts
    if isinstance(parts, str) or (isinstance(parts, list) and any(isinstance(part, str) for part in parts)):
        raise PydanticCustomError("eval_path", "an evaluation is a mapping: say its path as eval.data.path=PATH")
    if not isinstance(parts, list):
        return parts
    return [_named(part) if isinstance(part, dict) else part for part in parts]


def _named(part: dict[str, Any]) -> dict[str, Any]:
    path = (part.get("data") or {}).get("path") if isinstance(part.get("data"), dict) else None
    first = path[0] if isinstance(path, list) and path else path
    if part.get("name") or not isinstance(first, str):
        return part
    stem = re.split(r"[/:]", first)[-1].split(".")[0]
    return {**part, "name": re.sub(r"[^\w.-]", "-", stem)[:64] or "held-out"}


Evaluations = Annotated[list[EvalRecipe], BeforeValidator(named)]
