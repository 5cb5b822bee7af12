"""Built-in rewards for answers that can be checked. Heavy libraries are imported at the first call."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from asyncrl.rewards.evaluation import Refused, formulas_only

# A minus sign counts unless it follows an operand, as in "10-4"; commas only between groups of three digits.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?:(?<![\w)])-)?\.\d+")


def last_number(completion: str, answer: Any, **row: Any) -> float:
    """1 if the last number in the completion equals the (last number in the) answer, else 0."""
    gold = _last_number(str(answer))
    if gold is None:
        raise ValueError(f"there is no number in the answer {answer!r}")
    return float(_last_number(completion) == gold)


def exact_match(completion: str, answer: Any, **row: Any) -> float:
    """1 if the completion is the answer, apart from white space around them, else 0."""
    return float(completion.strip() == str(answer).strip())


def math_verify(completion: str, answer: Any, **row: Any) -> float:
    """1 if math-verify finds the completion's final expression equal to the answer, else 0.

    The answer is a number, LaTeX with or without delimiters, or GSM8K's `reasoning #### 42`.
    """
    from math_verify import parse, verify

    text = str(answer).rpartition("####")[2].strip()
    # math-verify finds LaTeX by its delimiters, which the golds of most data sets lack.
    delimited = text if "$" in text or "\\boxed" in text or "\\(" in text or "\\[" in text else f"\\boxed{{{text}}}"
    # Its own time-outs are off: they need SIGALRM, and the pool has one that cannot be ignored. It warns of that.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    gold = parse(delimited, parsing_timeout=None)
    if not gold:
        raise ValueError(f"math-verify cannot read the answer {answer!r}")
    return float(verify(gold, parse(completion, parsing_timeout=None), timeout_seconds=None))


def reasoning_gym(completion: str, **row: Any) -> float:
    """The score that the row's own reasoning_gym data set gives (0 to 1).

    Takes the last `<answer>...</answer>` of the completion, or all of it if there is none. Many data sets evaluate it
    as Python: what is no formula and no literal is not executed, and scores 0.
    """
    from reasoning_gym.utils import extract_answer

    answer = extract_answer(completion)
    score_answer = _score_answer(row["metadata"]["source_dataset"])
    with contextlib.suppress(Refused), formulas_only():
        return float(score_answer(completion.strip() if answer is None else answer, row))
    return 0.0


@functools.cache
def _score_answer(name: str) -> Callable[[str, dict[str, Any]], float]:
    from reasoning_gym import get_score_answer_fn

    return get_score_answer_fn(name)


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
