"""Whether what a recipe says of teachers goes together. Every fault is a UserError."""

from __future__ import annotations

import re
from collections.abc import Iterator

from asyncrl.errors import UserError, nearest
from asyncrl.models import TINY_LLAMA
from asyncrl.recipe.algorithm import AlgorithmRecipe
from asyncrl.recipe.data import DataPart
from asyncrl.recipe.schema import Recipe
from asyncrl.recipe.teacher import TeacherRecipe, hint_parts, teacher_of
from asyncrl.registry import LOSSES, loss_traits


def check_teachers(recipe: Recipe) -> None:
    """Raises UserError for the first thing that would not teach what the recipe says. The models: `check.py`; their
    vocabularies: `data/vocabulary.py`."""
    a, usual = recipe.algorithm, AlgorithmRecipe()
    if a.teacher:
        for fault in (*_faults(recipe, a), *(_faults_alone(recipe, a) if recipe.taught_alone else ())):
            raise UserError(fault)
        return
    for key in ("teacher_coef", "teacher_in"):
        if getattr(a, key) != getattr(usual, key):
            raise UserError(
                f"algorithm.{key} is of a teacher, and there is none; set algorithm.teacher, or leave it out"
            )


def _faults(recipe: Recipe, a: AlgorithmRecipe) -> Iterator[str]:
    labels = [source.label for source in recipe.sources if isinstance(source, DataPart)]
    taught = [teacher.source for teacher in a.teacher]
    for teacher in a.teacher:
        yield from _faults_of_server(recipe, teacher)
        yield from _faults_of_hint(recipe, teacher)
        if teacher.model == TINY_LLAMA:
            yield f"algorithm.teacher {TINY_LLAMA} is random and knows nothing; name a folder or a model of the hub"
        if teacher.source and teacher.source not in labels:
            yield (
                f"algorithm.teacher: data has no source {teacher.source}{nearest(teacher.source, labels)}; it has "
                f"{', '.join(labels) or 'none with a name: it is no list'}"
            )
        if taught.count(teacher.source) > 1:
            whom = f"source {teacher.source}" if teacher.source else "every source that has none of its own"
            yield f"algorithm.teacher: {taught.count(teacher.source)} teach {whom}; leave one, or name another source"
    if a.teacher_in == "advantage" and a.loss in LOSSES and not loss_traits(a.loss).linear:
        yield (
            f"algorithm.teacher_in advantage is a term of each token's advantage, and loss {a.loss} is not linear in "
            "those; set algorithm.teacher_in=loss, or take another loss"
        )


def _faults_of_server(recipe: Recipe, teacher: TeacherRecipe) -> Iterator[str]:
    """What is asked of a server, and what can be of one alone."""
    usual = TeacherRecipe(model="")
    if teacher.url is None:
        for key in ("tokenizer", "api_key_variable", "timeout_s", "concurrency"):
            if getattr(teacher, key) != getattr(usual, key):
                yield (
                    f"algorithm.teacher.{key} is of a server, and there is none; set algorithm.teacher.url, or "
                    "leave it out"
                )
        return
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", teacher.url):
        yield f"algorithm.teacher.url '{teacher.url}' is no address such as http://host:8000"
    if recipe.rollout.temperature != 1:
        yield (
            "algorithm.teacher.url: a server gives log-probs of temperature 1, and rollout.temperature is "
            f"{recipe.rollout.temperature:g}; set that to 1, or leave url out and let the trainer load the teacher"
        )


def _faults_of_hint(recipe: Recipe, teacher: TeacherRecipe) -> Iterator[str]:
    if teacher.hint is None:
        return
    try:
        parts = hint_parts(teacher.hint)
    except ValueError as error:
        yield (
            f"algorithm.teacher.hint '{teacher.hint}' is no text with columns in braces: {error}; a brace that is one "
            "is written twice"
        )
        return
    if not any(name for _, name in parts):
        yield (
            f"algorithm.teacher.hint '{teacher.hint}' has no column of the data, and would be the same for every task; "
            "put one in braces, or {prompt} if that is meant"
        )
    if recipe.env is not None:
        yield (
            "algorithm.teacher.hint goes with the prompts of the data, and with env the environment makes its own; "
            "leave one of them out"
        )


def _faults_alone(recipe: Recipe, a: AlgorithmRecipe) -> Iterator[str]:
    """Of one without any reward."""
    for source in recipe.sources:
        label = source.label if isinstance(source, DataPart) else ""
        if teacher_of(a.teacher, label) is None:
            yield f"data: source {label} has neither a reward nor a teacher; give it one in algorithm.teacher"
    if a.loss in LOSSES and not loss_traits(a.loss).linear:
        yield f"algorithm.loss {a.loss} compares rewards, and there are none beside the teacher; take ppo"
    if a.filter_equal_rewards:
        yield (
            "algorithm.filter_equal_rewards would filter every group, as there are no rewards beside the teacher; set "
            "it to false"
        )
    best = recipe.checkpoint.keep_best or ""
    if best.startswith(("reward/", "accuracy/")):
        yield (
            f"checkpoint.keep_best: no step has {best}, as there are no rewards beside the teacher; take the score of "
            "an evaluation"
        )
