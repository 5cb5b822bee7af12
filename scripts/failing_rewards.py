"""Rewards for the failures of scripts/failures: each is wrong in a way that people's own are."""

from __future__ import annotations

import string
from typing import Any

_LONG = 40


def letters(completion: str) -> float:
    """Share of lowercase letters in it: what is meant."""
    return sum(character in string.ascii_lowercase for character in completion) / max(len(completion), 1)


def length(completion: str, **row: Any) -> dict[str, float]:
    """Meant to ask for text; pays for each character, whatever it is."""
    return {"reward": min(1.0, len(completion) / _LONG), "letters": letters(completion)}


def two_prizes(completion: str, **row: Any) -> float:
    """1 for digits alone, which a random model never writes; for lowercase letters, which it finds, up to a half."""
    return 1.0 if completion.isdigit() else 0.5 * letters(completion)
