"""Which rows of a table are drawn, and why the others are not.

The choice is made once, before the first draw, and is a function of the data, the recipe and the model's tokenizer. So
a share of a mixture is of rows that can be trained, and a resumed run draws what the first one would have drawn.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np

from asyncrl.data.prompts import Prompt


class Selection:
    """Of one table: at first all rows."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.reasons: Counter[str] = Counter()
        """Number of rows that are left out, by reason."""
        self.first: dict[str, str] = {}
        """Of each reason, what is wrong with the first row."""
        self._left_out = array("q")
        self._rows: Sequence[int] | np.ndarray = range(num_rows)

    def leave_out(self, index: int, reason: str, fault: str) -> None:
        """A row, which must still be among those that are drawn."""
        self._left_out.append(index)
        self.reasons[reason] += 1
        self.first.setdefault(reason, fault)

    @property
    def rows(self) -> Sequence[int] | np.ndarray:
        """Indices of the rows that are drawn, in their order."""
        if len(self._rows) != self.num_rows - len(self._left_out):
            self._rows = np.delete(np.arange(self.num_rows), self._left_out)
        return self._rows

    def digest(self, of_table: str) -> str:
        """That of the table, if all of it is drawn; else one of both."""
        if not self._left_out:
            return of_table
        return hashlib.sha256(of_table.encode() + np.asarray(self.rows, np.int64).tobytes()).hexdigest()

    def said(self, reasons: Sequence[str] = ()) -> str:
        """How many rows are left out, why, and the first of each reason; `reasons`: only these."""
        counts = {reason: count for reason, count in self.reasons.items() if not reasons or reason in reasons}
        parts = [f"{count} {reason} ({self.first[reason]})" for reason, count in counts.items()]
        return f"{sum(counts.values())} of {self.num_rows} rows are left out: {'; '.join(parts)}"


class Seen:
    """The prompts of one or more tables, as far as they have been gone through."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()

    def before(self, prompt: bytes) -> bool:
        """Whether the same was asked about before."""
        found = hashlib.blake2b(prompt, digest_size=16).digest()
        known = found in self._hashes
        self._hashes.add(found)
        return known


def written(prompt: Prompt) -> bytes:
    """All that the model will be given, and is to answer: the same for the same prompt."""
    said = [prompt.value, prompt.tools, prompt.template_kwargs, prompt.answers]
    # Half a character is refused in texts; a tool may have one.
    return json.dumps(said, ensure_ascii=False, sort_keys=True, default=str).encode(errors="surrogatepass")
