"""How rewards fail: the kinds of failure of a run, how often each was met, and how it read first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_MOST_KINDS = 20
_REST = "others"


class RewardFailures:
    """Told of every message; a kind is an exception's type and place, or a text without its figures and quotations."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def add(self, messages: Iterable[str]) -> list[str]:
        """Count them; those of a kind that was not met before, but for more than 20 kinds."""
        new = []
        for message in messages:
            kind = _kind(message)
            if kind not in self._first:
                if len(self._first) == _MOST_KINDS:
                    kind = _REST
                else:
                    self._first[kind] = message
                    new.append(message)
            self._counts[kind] += 1
        return new

    @property
    def counts(self) -> dict[str, int]:
        """How often each kind was met, by its first message; the most frequent first."""
        return {self._first.get(kind, kind): count for kind, count in self._counts.most_common()}


def _kind(message: str) -> str:
    if raised := re.fullmatch(r"(\w+)(?:: .*)? (\(\S+:\d+\))", message, re.DOTALL):
        return " ".join(raised.groups())
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+(?:\.\d+)?", "…", message)
