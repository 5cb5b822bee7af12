"""Which columns of a table have the prompts, and which the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asyncrl.data import adp
from asyncrl.errors import UserError
from asyncrl.recipe.data import DataRecipe

_PROMPT_COLUMNS = ("prompt", "question", "problem", "messages")
PAIR = ("chosen", "rejected")
_ANSWERS = ("completion", "answer", "response")
_CHATS = "messages"


@dataclass(frozen=True)
class Columns:
    prompt: str
    answers: tuple[str, ...] = ()
    """Empty: the answers are the assistant's messages of the prompt's column."""


def columns_for(names: list[str], recipe: DataRecipe, num_answers: int) -> Columns:
    """Where the prompts and the answers of a table are. Raises UserError if there are none."""
    if not num_answers:
        return Columns(_prompt_column(names, recipe.prompt_column))
    pairs = num_answers > 1
    if (found := _of_answers(names, pairs, recipe.prompt_column, recipe.completion_column)) is not None:
        return found
    wanted = "columns chosen and rejected" if pairs else "column of chats (messages), nor of prompts and answers"
    cure = "rename them" if pairs else "name them by data.prompt_column and data.completion_column"
    raise UserError(f"data.path: the data set has no {wanted}, only {', '.join(names)}; {cure}")


def _prompt_column(columns: list[str], named: str | None) -> str:
    """Raises UserError if there is none, with what may be the cause."""
    candidates = _PROMPT_COLUMNS if named is None else (named,)
    for column in candidates:
        if column in columns:
            return column
    wanted = f"no column '{named}'" if named else f"none of the columns {', '.join(_PROMPT_COLUMNS)}"
    cure = "name one of them"
    if len(columns) == 1 and (separator := next((mark for mark in ";\t|" if mark in columns[0]), None)):
        cure = f"for a CSV with this separator set data.options.sep={separator!r}"
    elif len(columns) == 1:
        cure += f", or if the rows are under this key of a .json file, set data.options.field={columns[0]}"
    raise UserError(f"data.prompt_column: the data set has {wanted}, only {', '.join(columns)}; {cure}")


def _of_answers(names: Sequence[str], pairs: bool, prompt: str | None, completion: str | None) -> Columns | None:
    """Which columns have the answers; `prompt`, `completion`: as the recipe names them. None: there are none."""
    if pairs:
        if not set(PAIR) <= set(names):
            return None
        return Columns(prompt or next((name for name in ("prompt", "question") if name in names), PAIR[0]), PAIR)
    answer = next((name for name in ((completion,) if completion else _ANSWERS) if name in names), None)
    asked = next((name for name in ((prompt,) if prompt else ("prompt", "question", "problem")) if name in names), None)
    if answer is not None and asked is not None:
        return Columns(asked, (answer,))
    chat = prompt or ("content" if set(names) >= adp.COLUMNS and _CHATS not in names else _CHATS)
    return Columns(chat) if completion is None and chat in names else None
