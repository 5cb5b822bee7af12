"""What a model will see of a recipe's data, in words: sources, lengths, and the first tasks as they are tokenised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asyncrl.data.check import answer_lines, check_vocabulary, described, load_tasks, longest, rendered, tokenizer_of
from asyncrl.data.mixture import Mixture
from asyncrl.data.prompts import BadPrompt
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
    tasks.check_lengths(tokenizer, most, key)
    sources = tasks.sources if isinstance(tasks, Mixture) else [tasks]
    shares = tasks.described() or [f"{recipe.sources[0].title}: {tasks.num_rows} rows"]
    found = []
    for share, source in zip(shares, sources, strict=True):
        found += [f"source     {share}", *_of_source(source, tokenizer, most, key)]
    for draw in range(number):
        found += ["", *_of_task(tasks, draw, tokenizer, most)]
    return found


def _of_source(source: TaskSource, tokenizer: Any, most: int, key: str) -> Iterator[str]:
    lengths, reasons = source.measured(tokenizer, _MOST_MEASURED)
    reasons["prompt_too_long"] = sum(length > most for length in lengths)
    drawn = min(source.num_rows, _MOST_MEASURED)
    least, median, high, longest = (int(np.percentile(lengths, q, method="nearest")) for q in (0, 50, 95, 100))
    filtered = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    yield f"columns    {', '.join(source.columns)}; the prompt is '{source.column}'"
    yield f"tokens     min {least}, median {median}, p95 {high}, max {longest} of the first {drawn} rows"
    yield f"filtered   {filtered or 'none'} of these ({key} {most})"


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
