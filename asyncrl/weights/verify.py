"""Whether an engine computes with the weights that were sent: a fixed text, scored by the engine and by the trainer.

vLLM's own checksums cannot tell on CPU, where packed linear layers hash to the digest of nothing. Log-probs can: a
parameter that did not arrive, or arrived in the wrong place, moves them. Both sides score the text before anything is
sent too, so that what they differ in by rounding, or by an engine's quantisation, is known.

The driver holds this. Every engine is compared at the first version that it was sent, once; with `weights.verify` at
each version.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncrl.errors import RunFailed
from asyncrl.recipe.schema import Recipe

_TEXT = "The quick brown fox jumps over the lazy dog. 12 + 30 = 42, and 7 times 6 is the same."
_MAX_TOKENS = 64

FLOOR_NATS = {"float32": 1e-3, "float16": 0.01, "bfloat16": 0.03}
"""Mean |difference| per token that needs no explanation: in fp32 about 1e-5 was seen, in bf16 0.01 to 0.04."""
GROWTH = 4.0
"""Rounding may differ so many times more than before the first push."""
_KEEP_VERSIONS = 64
"""A comparison is at most as many versions late as the engine's queue is long."""

LogProbs = list[float]
"""Of the text's second token and those after it, at temperature 1."""


class WeightMismatch(RunFailed):
    """A generator does not compute what the trainer does with the weights that it was sent."""


def probe_tokens(tokenizer: Any, max_tokens: int) -> list[int]:
    """The text, cut so that an engine that takes `max_tokens` can score it."""
    tokens: list[int] = tokenizer(_TEXT, add_special_tokens=False).input_ids
    return tokens[: min(_MAX_TOKENS, max_tokens - 1)]


class Verification:
    """Log-probs of the text as trainer and engines gave them, and which engines are still to be compared."""

    def __init__(self, recipe: Recipe) -> None:
        self.always = recipe.weights.verify
        trained = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[recipe.trainer.precision]
        self._floor = max(FLOOR_NATS[trained], FLOOR_NATS[recipe.weights.dtype])
        self._trainer_initial: LogProbs = []
        self._expected: dict[int, LogProbs] = {}
        self._engine_initial: dict[str, LogProbs] = {}
        self.pending: set[str] = set()
        """Engines that hold weights and have not been compared since they were started."""

    @property
    def wanted(self) -> bool:
        """Whether the trainer is to score its next version."""
        return bool(self.pending) or (self.always and bool(self._engine_initial))

    def trainer_loaded(self, logprobs: LogProbs) -> None:
        """What the trainer gives with the initial model."""
        self._trainer_initial = logprobs

    def expect(self, version: int, logprobs: LogProbs | None) -> None:
        """What the trainer gives with this version; None if it did not score it."""
        if logprobs is not None:
            self._expected[version] = logprobs
            self._expected.pop(version - _KEEP_VERSIONS, None)

    def engine_loaded(self, name: str, logprobs: LogProbs | None) -> None:
        """What an engine gives with the initial model, before anything was sent; None: it cannot be compared."""
        self.pending.discard(name)
        self._engine_initial.pop(name, None)
        if logprobs is not None:
            self._engine_initial[name] = logprobs
            self.pending.add(name)

    def of(self, names: Sequence[str]) -> list[str]:
        """Those to be compared after a push to all of these."""
        return [name for name in names if name in self.pending or (self.always and name in self._engine_initial)]

    def compare(self, name: str, version: int, logprobs: LogProbs) -> float | None:
        """How far the engine is from the trainer, in nats per token; None if the trainer has not scored that version,
        and then it is compared at a later one. Raises WeightMismatch if that is more than rounding explains."""
        expected = self._expected.get(version)
        if expected is None or name not in self._engine_initial:
            return None
        gap, before = _mean_gap(expected, logprobs), _mean_gap(self._trainer_initial, self._engine_initial[name])
        # Rounding is relative: it grows with the log-probs themselves.
        larger = max(1.0, _mean_size(expected) / max(_mean_size(self._trainer_initial), 1e-6))
        limit = self._floor + GROWTH * before * larger
        if not gap <= limit:
            raise WeightMismatch(
                f"{name} does not compute with the weights of version {version} as the trainer does: their log-probs "
                f"of a fixed text differ by {gap:.2g} nats a token, where {before:.2g} before the first push and "
                f"{limit:.2g} now are rounding; the push does not fit this model in this engine. Try another "
                "weights.channel, or no quantisation in rollout.engine_args, and open an issue with the model's name"
            )
        self.pending.discard(name)
        return gap


def _mean_gap(ours: LogProbs, theirs: LogProbs) -> float:
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / max(len(ours), 1)


def _mean_size(logprobs: LogProbs) -> float:
    return _mean_gap(logprobs, [0.0] * len(logprobs))
