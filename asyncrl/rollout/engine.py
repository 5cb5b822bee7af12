"""What a rollout engine is: the protocol, and what goes in and comes out.

Three engines share it: vLLM (`vllm_engine.py`), the simulated one (`simulated.py`), or a user's own by path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from asyncrl.weights.update import WeightUpdate


@dataclass(frozen=True)
class SamplingParams:
    """How one completion is sampled. The log-probs returned are of softmax(logits / temperature)."""

    max_new_tokens: int
    temperature: float
    seed: int
    stop: tuple[str, ...] = ()
    """Texts that end the completion; the token that completes one is its last, whole."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end it, being its last."""


@dataclass(frozen=True)
class VersionSpan:
    """Tokens [start, end) of the completion were sampled by `version`; stamped by the engine (I3)."""

    version: int
    start: int
    end: int


@dataclass(frozen=True)
class Completion:
    """One sampled completion of C tokens."""

    tokens: list[int]
    """C token ids, the end-of-sequence token included."""
    logprobs: list[float] | None
    """C log-probs of the distribution that was sampled; None from an engine that gives none."""
    spans: list[VersionSpan]
    """Cover [0, C) without gaps."""
    finish_reason: str
    """`stop`, `length` or `abort`."""


class EngineDead(RuntimeError):
    """The engine is gone for good; its generator must be given up."""


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is started with; the same for every replica."""

    model: str
    dtype: str
    channel: str
    max_tokens: int
    """Longest prompt and completion together."""
    kv_after_update: str
    cpu_cores: str
    kv_cache_gib: float
    seed: int
    engine_args: dict[str, Any] = field(default_factory=dict)
    num_gpus: float = 0
    """That it may use, whatever the machine has; 0 = CPU, below 1 = that share of one and of its memory."""

    @property
    def num_workers(self) -> int:
        """Processes that the model is sharded over."""
        args = self.engine_args
        workers: int = args.get("tensor_parallel_size", 1) * args.get("pipeline_parallel_size", 1)
        return workers


class Engine(Protocol):
    """One inference engine of a generator. Coroutines run on the generator's event loop."""

    provides_logprobs: ClassVar[bool]
    """False: completions carry no log-probs, and objectives that need them are refused."""
    holds_weights: ClassVar[bool]
    """False: there is nothing to push but the version."""

    def __init__(self, config: EngineConfig) -> None: ...

    async def start(self) -> None:
        """Load the model and stamp its weights as version 0."""

    async def generate(self, tokens: list[int], params: SamplingParams, *, request_id: str) -> Completion:
        """Sample one completion of the prompt `tokens`."""

    async def cancel(self, request_ids: list[str]) -> None:
        """End running requests; their `generate` returns what they had, with finish reason `abort`."""

    async def join_channel(self, init_info: dict[str, Any]) -> None:
        """Join the weight channel; again with new information after the channel was rebuilt."""

    async def update_weights(self, update: WeightUpdate) -> float:
        """Pause (running requests are kept), load, stamp `update.version`, resume; returns seconds paused.

        After a failure the engine stays paused: it must not serve half-loaded weights. Calling again mends it.
        """

    async def score(self, tokens: list[int]) -> tuple[int, list[float]]:
        """Log-probs of tokens[1:] given what is before them, at temperature 1, and the version that computed them."""

    async def check(self) -> None:
        """Raises EngineDead if the engine has ended."""

    def version(self) -> int:
        """The version that new tokens are stamped with."""

    async def close(self) -> None: ...
