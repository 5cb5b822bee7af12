"""What an evaluation says: pass@k, means over tasks, and how sure they are. Pure arithmetic."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_Z = 1.959964
"""Of a two-sided interval of 95 %."""


def pass_at_k(num: int, correct: int, k: int) -> float:
    """Probability that k of a task's `num` rollouts, drawn without replacement, have a correct one among them:
    1 - C(num - correct, k) / C(num, k) (Chen et al., arXiv:2107.03374). ValueError if k is not in 1 ... num."""
    if not 1 <= k <= num:
        raise ValueError(f"pass@{k} needs 1 to {num} of {num} rollouts")
    return 1.0 - math.comb(num - correct, k) / math.comb(num, k)


def powers(num: int) -> list[int]:
    """The k that pass@k is given for: powers of two up to `num`, and `num`."""
    return sorted({2**i for i in range(num.bit_length()) if 2**i <= num} | {num})


def interval(tasks: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """95 % confidence interval of the mean over tasks, whose rollouts are not independent (Miller, arXiv:2411.00640).

    Outcomes of 0 and 1: Wilson's, with the number of independent outcomes that the spread of the tasks' means amounts
    to. Others: the normal one. None if nothing can be said.
    """
    means = [statistics.fmean(values) for values in tasks if values]
    if not means:
        return None
    mean, number = statistics.fmean(means), float(len(means))
    spread = statistics.variance(means) if len(means) > 1 else 0.0
    if all(value in (0, 1) for values in tasks for value in values):
        if spread and max(map(len, tasks)) > 1:
            number = mean * (1 - mean) * number / spread
        return _wilson(mean, number)
    if len(means) < 2:
        return None
    half = _Z * math.sqrt(spread / number)
    return mean - half, mean + half


def _wilson(share: float, number: float) -> tuple[float, float]:
    weight = 1 + _Z**2 / number
    middle = (share + _Z**2 / (2 * number)) / weight
    half = _Z * math.sqrt(share * (1 - share) / number + _Z**2 / (4 * number**2)) / weight
    return max(0.0, middle - half), min(1.0, middle + half)
