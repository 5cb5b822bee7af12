"""From rows to tasks: which row is drawn when, what the prompt is, and its tokens.

The order is a pure function of (seed, draw number), so a resumed run draws what the first one would have drawn.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asyncrl.data.source import Rows
from asyncrl.errors import UserError
from asyncrl.recipe.schema import DataRecipe

_PROMPT_COLUMNS = ("prompt", "question", "problem", "messages")

Message = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One draw of one row."""

    number: int
    """Draw number: 0, 1, 2, … over all epochs."""
    row_index: int
    prompt: str | list[Message]
    """Text, or chat messages for the model's chat template."""
    row: dict[str, Any]
    """All columns."""


class TaskSource:
    """Draws tasks: every epoch visits each row once, in an order of its own."""

    def __init__(self, rows: Rows, recipe: DataRecipe, seed: int) -> None:
        """Raises UserError if there is no prompt column, or the first row's prompt does not fit the recipe."""
        self._rows = rows
        self._recipe = recipe
        self._seed = seed % 2**64
        self._column = _prompt_column(rows.column_names, recipe.prompt_column)
        # Draws near the end of an epoch and the beginning of the next come interleaved.
        self._order = functools.lru_cache(maxsize=2)(self._make_order)
        first = self.task(0).prompt
        if recipe.system is not None and isinstance(first, str):
            raise UserError("data.system needs chat prompts: set data.chat=true, or leave data.system out")

    def row_of(self, draw: int) -> int:
        """Index of the row of draw number `draw`."""
        epoch, place = divmod(draw, len(self._rows))
        return int(self._order(epoch)[place]) if self._recipe.shuffle else place

    def task(self, draw: int) -> Task:
        """The task of draw number `draw`. Raises UserError if its row has no usable prompt."""
        index = self.row_of(draw)
        row = self._rows[index]
        return Task(draw, index, self._prompt(row[self._column], index), row)

    def check_template(self, tokenizer: Any) -> None:
        """Raises UserError if the prompts are chats and the tokenizer has no template for them."""
        if not isinstance(self.task(0).prompt, str) and not tokenizer.chat_template:
            raise UserError(
                f"the prompts are chats (data.chat, or messages in column '{self._column}'), but the model's "
                "tokenizer has no chat template; use an instruct model, or text prompts with data.chat=false"
            )

    def _make_order(self, epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(len(self._rows))

    def _prompt(self, value: Any, index: int) -> str | list[Message]:
        where = f"data.prompt_column: row {index} of column '{self._column}'"
        if isinstance(value, str):
            if not self._recipe.chat:
                return value
            messages = [{"role": "user", "content": value}]
        elif isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value):
            # Arrow fills keys that only other messages have with None.
            messages = [{key: item for key, item in m.items() if item is not None} for m in value]
        else:
            raise UserError(f"{where} must be text or a list of chat messages, not {str(value)[:80]!r}")
        if messages[-1]["role"] == "assistant":
            raise UserError(f"{where} ends with the assistant's answer; a prompt must end before it")
        if self._recipe.system is None:
            return messages
        # In the place of a system message of the row's own: templates allow one.
        return [{"role": "system", "content": self._recipe.system}, *(m for m in messages if m["role"] != "system")]


def tokenize(task: Task, tokenizer: Any) -> list[int]:
    """Token ids of the prompt: text with the tokenizer's special tokens, chats up to where the assistant begins."""
    if isinstance(task.prompt, str):
        return tokenizer(task.prompt).input_ids
    return tokenizer.apply_chat_template(task.prompt, add_generation_prompt=True, tokenize=True, return_dict=False)


def has_chat_template(model_dir: Path) -> bool:
    """Whether a local model's tokenizer has a chat template, found out without transformers."""
    if (model_dir / "chat_template.jinja").is_file():
        return True
    config = model_dir / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text()).get("chat_template"))


def _prompt_column(columns: list[str], named: str | None) -> str:
    candidates = _PROMPT_COLUMNS if named is None else (named,)
    for column in candidates:
        if column in columns:
            return column
    wanted = f"no column '{named}'" if named else f"none of the columns {', '.join(_PROMPT_COLUMNS)}"
    raise UserError(f"data.prompt_column: the data set has {wanted}, only {', '.join(columns)}; name one of them")
