"""What a model will see of a recipe's data, in words: sources, lengths, and the first tasks as they are tokenised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asyncrl.data.check import (
    answer_lines,
    check_vocabulary,
    described,
    leave_out_long,
    load_tasks,
    longest,
    rendered,
    tokenizer_of,
)
from asyncrl.data.mixture import Mixture
from asyncrl.data.prompts import BadPrompt
from asyncrl.data.source import made_on_demand
from asyncrl.data.tasks import TaskSource, tokenize
from asyncrl.models import TINY_LLAMA, hub_config, is_local, load_tokenizer, local_config
from asyncrl.recipe.schema import Recipe
from asyncrl.task import Task

_MOST_MEASURED = 2000
_MAX_VALUE_CHARS = 80


def lines(recipe: Recipe, base_dir: Path, number: int) -> list[str]:
    """Of each source, then of the first `number` tasks. Raises UserError as a run would."""
    tasks = load_tasks(recipe, base_dir)
    tokenizer = tokenizer_of(recipe, base_dir) or load_tokenizer(recipe.model)
    _, tokens = tasks.first_prompt(tokenizer)
    if recipe.model != TINY_LLAMA:
        config = local_config(Path(recipe.model)) if is_local(recipe.model) else hub_config(recipe.model)
        check_vocabulary(config, tokenizer, tokens)
    most, key = longest(recipe)
    sources = tasks.sources if isinstance(tasks, Mixture) else [tasks]
    lengths = [_lengths(source, tokenizer, most) for source in sources]
    leave_out_long(recipe, tasks, tokenizer)
    found = []
    shares = tasks.described() or [f"{recipe.sources[0].title}: {source.counted()}" for source in sources]
    for share, source, measured in zip(shares, sources, lengths, strict=True):
        found += [f"source     {share}", *_of_source(source), *measured, *_left_out(source, f"{key} {most}")]
    for draw in range(number):
        found += ["", *_of_task(tasks, draw, tokenizer, most)]
    return found


def _of_source(source: TaskSource) -> Iterator[str]:
    yield f"columns    {', '.join(source.columns)}; the prompt is '{source.column}'"


def _lengths(source: TaskSource, tokenizer: Any, most: int) -> list[str]:
    """Of the rows that are drawn first, before the long ones are left out."""
    lengths, reasons = source.measured(tokenizer, _MOST_MEASURED)
    if not lengths:
        return []
    drawn, too_long = min(source.num_drawn, _MOST_MEASURED), sum(length > most for length in lengths)
    least, median, high, longest = (int(np.percentile(lengths, q, method="nearest")) for q in (0, 50, 95, 100))
    found = [f"tokens     min {least}, median {median}, p95 {high}, max {longest} of the first {drawn} rows"]
    if made_on_demand(source.rows) and (reasons or too_long):
        counts = {**reasons, "prompt_too_long": too_long}
        shown = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        found.append(f"filtered   {shown} of these, when they are drawn")
    return found


def _left_out(source: TaskSource, limit: str) -> Iterator[str]:
    if not source.selection.reasons:
        yield f"left out   none ({limit})"
    for reason, count in source.selection.reasons.items():
        yield f"left out   {count} {reason}: {source.selection.first[reason]} ({limit})"


def _of_task(tasks: TaskSource | Mixture, draw: int, tokenizer: Any, most: int) -> Iterator[str]:
    try:
        task = tasks.task(draw)
        tokens = tokenize(task, tokenizer)
    except BadPrompt as fault:
        yield f"task {draw:<5} filtered, {fault.reason}: {fault}"
        return
    over = "filtered, prompt_too_long: " if len(tokens) > most else ""
    yield f"task {draw:<5} {over}{described(task, tokens, tokenizer)}"
    yield from rendered(tokens, tokenizer)
    yield from answer_lines(task, tokenizer)
    yield from _columns(task)


def _columns(task: Task) -> Iterator[str]:
    """What the reward gets by name."""
    for name, value in task.row.items():
        if value is not task.prompt:
            text = repr(value)
            short = text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]}..."
            yield f"    {name} = {short}"
