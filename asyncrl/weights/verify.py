"""The optional check of a push: does the engine, with what it now holds, give the trainer's log-probs?

vLLM's own checksums cannot tell on CPU, where packed linear layers hash to the digest of nothing. A fixed text
scored on both sides can: a parameter that did not arrive, or arrived in the wrong place, moves its log-probs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEXT = "The quick brown fox jumps over the lazy dog. 12 + 30 = 42, and 7 times 6 is the same."

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest mean |difference| in nats per token that rounding explains; bf16 kernels differ by a few hundredths."""


class WeightMismatch(RuntimeError):
    """A replica does not hold the weights that were sent."""


class Probe:
    """Fixed tokens, and the trainer's log-probs of them for each staged version."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self._expected: dict[int, list[float]] = {}

    @classmethod
    def of_tokenizer(cls, tokenizer: Any) -> Probe:
        return cls(tokenizer(_TEXT, add_special_tokens=False).input_ids[:64])

    def expect(self, version: int, logprobs: list[float]) -> None:
        """Remember the trainer's log-probs of tokens[1:]; those of the version before stay for its push."""
        self._expected = {v: e for v, e in self._expected.items() if v >= version - 2}
        self._expected[version] = logprobs

    def check(self, version: int, found: Mapping[str, list[float]], dtype: str) -> dict[str, float]:
        """Mean |difference| of each replica. Raises WeightMismatch over the tolerance of `dtype`."""
        expected = self._expected[version]
        gaps = {
            name: sum(abs(a - b) for a, b in zip(expected, logprobs, strict=True)) / len(expected)
            for name, logprobs in found.items()
        }
        for name, gap in gaps.items():
            if not gap <= TOLERANCE[dtype]:
                raise WeightMismatch(
                    f"{name} does not hold version {version}: its log-probs of the probe differ from the "
                    f"trainer's by {gap:.3g} nats a token, over {TOLERANCE[dtype]}"
                )
        return gaps
