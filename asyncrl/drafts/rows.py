"""What rows are good for: which column is the prompt, which has the answer, and what it is like."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from asyncrl.data.source import Rows
from asyncrl.errors import UserError

PROMPTS = ("prompt", "question", "problem", "messages")
"""What a recipe takes by itself, in this order (`data.prompt_column`)."""
_MORE_PROMPTS = ("instruction", "query", "input", "goal", "text")
_ANSWERS = ("answer", "solution", "ground_truth", "final_answer", "target", "gold", "label", "expected_answer")
_DEMONSTRATIONS = ("completion", "response", "output")
_NUM_SAMPLES = 200
_MOST_CHARS = 60
"""Of an answer that can be compared as text."""
_NUMBER = re.compile(r"[-+$]*\d[\d,]*(\.\d+)?\s*%?")
_MATHS = re.compile(r"[\\$^/]|\d\s*[-+*]\s*\w")


@dataclass(frozen=True)
class Look:
    """Of some rows."""

    columns: list[str]
    prompt: str
    is_chat: bool
    """Whether prompts are lists of messages."""
    answer: str | None
    """The column with the answer, `reward_model` if it is verl's; None: there is none to compare with."""
    judge: str | None
    """A ready reward for such answers, as `asyncrl.rewards.math:last_number`."""
    demonstrated: str | None
    """The column with whole answers to be learnt, `chosen` for pairs, the prompt's own if its chats end with one."""
    longest_chars: int
    """Of the prompts looked at."""


def look(rows: Rows, path: str, prompt: str | None = None) -> Look:
    """Looks at the first rows. `prompt`: the column that is said to be it. Raises UserError if none looks like one."""
    columns = rows.column_names
    samples = [rows[index] for index in range(min(_NUM_SAMPLES, len(rows)))]
    column = prompt or next((name for name in (*PROMPTS, *_MORE_PROMPTS) if name in columns), None)
    if column is None and {"chosen", "rejected"} <= set(columns):
        column = "chosen"
    if column is None or column not in columns:
        known = ", ".join(columns)
        odd = f"is called {prompt}" if prompt else "looks like a prompt"
        raise UserError(
            f"new: {path} has the columns {known}, and none {odd}; say which one it is, as in data.prompt_column=COLUMN"
        )
    chats = [messages for row in samples if (messages := _messages(row[column])) is not None]
    answer = next((name for name in _ANSWERS if name in columns and name != column), None)
    texts = [] if answer is None else [row[answer] for row in samples if row[answer] is not None]
    if answer is None and "reward_model" in columns:
        found = [row["reward_model"] for row in samples]
        if all(isinstance(one, dict) and "ground_truth" in one for one in found):
            answer, texts = "reward_model", [one["ground_truth"] for one in found]
    judge = "asyncrl.rewards.math:reasoning_gym" if path.startswith("reasoning_gym:") else _judge(texts)
    demonstrated = _demonstrated(columns, column, chats, answer if texts and judge is None else None)
    longest = max((len(str(row[column])) for row in samples), default=0)
    return Look(columns, column, bool(chats), answer if texts else None, judge, demonstrated, longest)


def _messages(value: Any) -> list[Any] | None:
    """The chat that a value is, or that its JSON is."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    is_chat = isinstance(value, list) and value and all(isinstance(one, dict) and "role" in one for one in value)
    return value if is_chat else None


def _judge(answers: Sequence[Any]) -> str | None:
    """The ready reward that compares a completion with such answers; None: none does."""
    texts = [str(answer).strip() for answer in answers if isinstance(answer, str | int | float)]
    if not texts or len(texts) < len(answers):
        return None
    if all("####" in text for text in texts):
        return "asyncrl.rewards.math:math_verify"
    if all(_NUMBER.fullmatch(text) for text in texts):
        return "asyncrl.rewards.math:last_number"
    if max(map(len, texts)) > 4 * _MOST_CHARS or any("\n" in text for text in texts):
        return None
    if sum(bool(_MATHS.search(text)) for text in texts) > len(texts) / 4:
        return "asyncrl.rewards.math:math_verify"
    return "asyncrl.rewards.math:exact_match" if max(map(len, texts)) <= _MOST_CHARS else None


def _demonstrated(columns: Sequence[str], prompt: str, chats: list[list[Any]], long_answer: str | None) -> str | None:
    if {"chosen", "rejected"} <= set(columns):
        return "chosen"
    if chats and all(chat[-1]["role"] == "assistant" for chat in chats):
        return prompt
    return next((name for name in _DEMONSTRATIONS if name in columns and name != prompt), long_answer)


def gold(row: dict[str, Any], found: Look) -> str | None:
    """The right answer of a row, as text."""
    value = row.get(found.answer) if found.answer else None
    if found.answer == "reward_model" and isinstance(value, dict):
        value = value["ground_truth"]
    return None if value is None else str(value)


def shown(found: Look) -> Iterator[str]:
    """What was found, in lines."""
    kind = "chat messages" if found.is_chat else "text"
    yield f"columns    {', '.join(found.columns)}"
    yield f"prompt     column '{found.prompt}', {kind}"
    if found.judge and found.answer:
        where = "'reward_model', key 'ground_truth'" if found.answer == "reward_model" else f"'{found.answer}'"
        yield f"answer     column {where}"
