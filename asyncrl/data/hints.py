"""What a teacher reads that the student does not: the task's prompt with columns of its row in it.

prompt + hint --chat template--> tokens of the teacher's prompt, before the student's completion
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from asyncrl.data.prompts import BadPrompt
from asyncrl.data.source import Rows
from asyncrl.data.tasks import tokenize
from asyncrl.errors import UserError, nearest
from asyncrl.recipe.data import DataPart
from asyncrl.recipe.schema import Recipe
from asyncrl.recipe.teacher import PROMPT, hint_parts, teacher_of
from asyncrl.task import Task


def check_hints(recipe: Recipe, tables: Sequence[Rows]) -> None:
    """Raises UserError if a source lacks a column that the hint of its teacher has."""
    for source, rows in zip(recipe.sources, tables, strict=True):
        label = source.label if isinstance(source, DataPart) else ""
        for name in (name for _, name in hint_parts(_hint(recipe, label) or "") if name and name != PROMPT):
            if name not in rows.column_names and name.partition(".")[0] not in rows.column_names:
                raise UserError(
                    f"algorithm.teacher: the hint has {{{name}}}, and {label or source.title} has no such column"
                    f"{nearest(name, rows.column_names)}; it has {', '.join(rows.column_names)}"
                )


def first_hinted(recipe: Recipe, task: Task, tokenizer: Any) -> list[int] | None:
    """What the teacher reads of the first task; None if that is what the student reads. Raises UserError."""
    if (hint := _hint(recipe, task.source)) is None:
        return None
    try:
        return hinted_tokens(task, hint, tokenizer)
    except BadPrompt as fault:
        raise UserError(f"algorithm.teacher: {fault}; take another hint, or other data") from fault


def _hint(recipe: Recipe, source: str) -> str | None:
    place = teacher_of(recipe.algorithm.teacher, source)
    return None if place is None else recipe.algorithm.teacher[place].hint


def hinted_tokens(task: Task, hint: str, tokenizer: Any) -> list[int]:
    """Token ids of the teacher's prompt, as `tokenize` gives those of the student's: its text, or the last message of
    the user, has the hint after it, or where `{prompt}` is in the hint is itself put into that.

    Raises BadPrompt if the row lacks a value, the chat has no message of the user, or the template refuses it.
    """
    return tokenize(replace(task, prompt=_hinted(task, hint)), tokenizer)


def _hinted(task: Task, hint: str) -> Any:
    if isinstance(task.prompt, str):
        return _filled(task, hint, task.prompt)
    users = [place for place, message in enumerate(task.prompt) if message["role"] == "user"]
    if not users or not isinstance(task.prompt[users[-1]].get("content"), str):
        raise BadPrompt("hint", f"{task.where} has no text of the user for the teacher's hint")
    last = task.prompt[users[-1]]
    asked = {**last, "content": _filled(task, hint, last["content"])}
    return [*task.prompt[: users[-1]], asked, *task.prompt[users[-1] + 1 :]]


def _filled(task: Task, hint: str, prompt: str) -> str:
    parts = hint_parts(hint)
    text = "".join(said + (prompt if name == PROMPT else _value(task, name) if name else "") for said, name in parts)
    return text if any(name == PROMPT for _, name in parts) else f"{prompt}\n\n{text}"


def _value(task: Task, name: str) -> str:
    """Of a column, or by dots of what is in it."""
    value: Any = task.row
    for key in [name] if name in task.row else name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        raise BadPrompt("hint", f"{task.where} has no {name} for the teacher's hint")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
