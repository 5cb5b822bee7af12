"""What rows are good for: which column is the prompt, which has the answer, and what it is like."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from asyncrl.data.adp import BadTrajectory
from asyncrl.data.prompts import as_messages
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

_ODD: dict[str, tuple[type, ...]] = {"lists": (list, tuple), "keys and values": (dict,), "true or false": (bool,)}


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
    odd: str | None = None
    """What the answers are, if no text or number."""
    num_empty: int = 0
    """Of the rows looked at, how many have no answer, where others have one."""


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
    if column == "instruction" and prompt is None and any(str(row.get("input") or "").strip() for row in samples):
        raise UserError(
            f"new: {path} has a part of its prompts in column input; write instruction and input into one column "
            "prompt, an empty line between them, or leave input out: data.prompt_column=instruction"
        )
    try:
        chats = [messages for row in samples if (messages := as_messages(row[column])) is not None]
    except BadTrajectory as error:
        raise UserError(f"new: {path} has a row that {error}; see data.on_bad_row") from error
    answer, texts, judge = _answers(samples, [name for name in _ANSWERS if name in columns and name != column])
    if answer is None and "reward_model" in columns:
        found = [row["reward_model"] for row in samples]
        if all(isinstance(one, dict) and "ground_truth" in one for one in found):
            answer, texts = "reward_model", [one["ground_truth"] for one in found if not _is_empty(one["ground_truth"])]
            judge = _judge(texts)
    if path.startswith("reasoning_gym:"):
        judge = "asyncrl.rewards.math:reasoning_gym"
    kind = next((kind for kind, types in _ODD.items() if texts and isinstance(texts[0], types)), None)
    demonstrated = _demonstrated(columns, column, chats, answer if texts and judge is None and not kind else None)
    if kind == "true or false" and demonstrated != "chosen":  # KTO: what is false is not to be learnt
        demonstrated = None
    longest = max((len(str(row[column])) for row in samples), default=0)
    empty = len(samples) - len(texts) if texts else 0
    return Look(columns, column, bool(chats), answer if texts else None, judge, demonstrated, longest, kind, empty)


def _answers(samples: Sequence[dict[str, Any]], names: Sequence[str]) -> tuple[str | None, list[Any], str | None]:
    """The first column that a ready reward compares with, else the first; its answers, without those that are empty;
    the reward."""
    found = []
    for name in names:
        texts = [row[name] for row in samples if not _is_empty(row[name])]
        found.append((name, texts, _judge(texts)))
    return next((one for one in found if one[2]), found[0] if found else (None, [], None))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _judge(answers: Sequence[Any]) -> str | None:
    """The ready reward that compares a completion with such answers; None: none does."""
    texts = [
        str(answer).strip()
        for answer in answers
        if isinstance(answer, str | int | float) and not isinstance(answer, bool)
    ]
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
    return None if _is_empty(value) else str(value)


def shown(found: Look) -> Iterator[str]:
    """What was found, in lines."""
    kind = "chat messages" if found.is_chat else "text"
    yield f"columns    {', '.join(found.columns)}"
    yield f"prompt     column '{found.prompt}', {kind}"
    if found.judge and found.answer:
        where = "'reward_model', key 'ground_truth'" if found.answer == "reward_model" else f"'{found.answer}'"
        yield f"answer     column {where}"
        if found.num_empty:
            yield f"caution    {found.num_empty} of the first rows have no answer: their completions are masked"
