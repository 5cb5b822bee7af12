"""How long completions are: a sample of lengths, from which each rollout draws one."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist, fmean

_NUM_QUANTILES = 1000
SPREAD = 0.7
"""Sigma of the logarithm of a length where none was measured: one completion in a hundred is then four times as long as
the mean. An assumption; answers to mathematical questions have about as long a tail."""


@dataclass(frozen=True)
class Lengths:
    """Each of `values` is as likely as the others, in tokens."""

    values: tuple[float, ...]
    of_task: float = 0.0
    """How much alike the rollouts of a group are, 0 to 1: the correlation of their places among `values` (a Gaussian
    copula). Hard tasks make all of them long."""

    @property
    def mean(self) -> float:
        return fmean(self.values)

    def draw(self, rng: random.Random, number: int) -> list[float]:
        """Of the rollouts of a group."""
        if not self.of_task:
            return [rng.choice(self.values) for _ in range(number)]
        shared, own = math.sqrt(self.of_task) * rng.gauss(), math.sqrt(1 - self.of_task)
        places = [(1 + math.erf((shared + own * rng.gauss()) / math.sqrt(2))) / 2 for _ in range(number)]
        return [self._in_order[min(int(place * len(self.values)), len(self.values) - 1)] for place in places]

    @cached_property
    def _in_order(self) -> list[float]:
        return sorted(self.values)

    @classmethod
    def constant(cls, tokens: float) -> Lengths:
        return cls((float(tokens),))

    @classmethod
    def log_normal(cls, mean: float, longest: float, spread: float = SPREAD) -> Lengths:
        """With a long tail that is cut at `longest`, as max_new_tokens does; `mean` is that after the cut.

        Raises ValueError if the mean is not below the longest.
        """
        normal = NormalDist()
        places = [normal.inv_cdf((i + 0.5) / _NUM_QUANTILES) for i in range(_NUM_QUANTILES)]
        return cls(tuple(math.exp(spread * place) for place in places)).scaled(mean, longest)

    @classmethod
    def measured(cls, sample: Sequence[float], mean: float, longest: float) -> Lengths:
        """In the shape of `sample`, with this mean."""
        return cls(tuple(float(tokens) for tokens in sample)).scaled(mean, longest)

    def scaled(self, mean: float, longest: float) -> Lengths:
        """The same shape with this mean, between 1 and `longest` tokens."""
        if not 1 <= mean <= longest:
            raise ValueError(f"a mean of {mean:g} tokens is not between 1 and the longest, {longest:g}")
        low, high = 0.0, longest / min(self.values)
        # The mean of what is cut grows with the factor.
        for _ in range(60):
            factor = (low + high) / 2
            cut = [min(max(1.0, factor * value), longest) for value in self.values]
            low, high = (factor, high) if fmean(cut) < mean else (low, factor)
        return replace(self, values=tuple(cut))
