"""A simulated engine: no model, random tokens at a set speed. For fault tests and the simulator, never for results.

It keeps the contract that matters to the control plane: versions are stamped per token as they are "sampled",
an update pauses and resumes, cancelling returns what there is. It gives no log-probs.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from asyncrl.rollout.engine import Completion, EngineConfig, SamplingParams, VersionSpan
from asyncrl.weights.update import WeightUpdate


class SimulatedEngine:
    """engine_args: `token_s` seconds per token (0.001), `vocabulary` number of token ids (100)."""

    provides_logprobs = False
    holds_weights = False

    def __init__(self, config: EngineConfig) -> None:
        self.token_s = float(config.engine_args.get("token_s", 0.001))
        self.vocabulary = int(config.engine_args.get("vocabulary", 100))
        self._version = 0
        self._running = asyncio.Event()
        self._active: set[str] = set()
        self._cancelled: set[str] = set()

    async def start(self) -> None:
        self._running.set()

    async def generate(self, tokens: list[int], params: SamplingParams, *, request_id: str) -> Completion:
        self._active.add(request_id)
        rng = random.Random(params.seed)
        length = rng.randint(1, params.max_new_tokens)
        reason = "length" if length == params.max_new_tokens else "stop"
        sampled: list[int] = []
        spans: list[VersionSpan] = []
        while len(sampled) < length and request_id not in self._cancelled:
            await asyncio.sleep(self.token_s)
            await self._running.wait()
            sampled.append(rng.randrange(self.vocabulary))
            if spans and spans[-1].version == self._version:
                spans[-1] = VersionSpan(self._version, spans[-1].start, len(sampled))
            else:
                spans.append(VersionSpan(self._version, len(sampled) - 1, len(sampled)))
            if sampled[-1] in params.stop_token_ids:
                reason = "stop"
                break
        aborted = request_id in self._cancelled
        self._cancelled.discard(request_id)
        self._active.discard(request_id)
        return Completion(sampled, None, spans, "abort" if aborted else reason)

    async def cancel(self, request_ids: list[str]) -> None:
        self._cancelled.update(self._active.intersection(request_ids))

    async def join_channel(self, init_info: dict[str, Any]) -> None:
        """Nothing to join."""

    async def update_weights(self, update: WeightUpdate) -> float:
        self._running.clear()
        await asyncio.sleep(self.token_s)
        self._version = update.version
        self._running.set()
        return self.token_s

    async def score(self, tokens: list[int]) -> tuple[int, list[float]]:
        raise RuntimeError("the simulated engine has no model to score with")

    async def check(self) -> None:
        """There is nothing that could have ended."""

    def version(self) -> int:
        return self._version

    async def close(self) -> None:
        """Nothing is open."""
