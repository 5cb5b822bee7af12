"""What a recipe may say of its generators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from asyncrl.recipe.part import Gib, Gpus, NonNegativeInt, Part, PositiveInt, Processes, listed, no_range


class RolloutRecipe(Part):
    engine: str = "vllm"
    """`vllm`, `simulated` (no model: random tokens at a set speed, for tests), `data` (nothing is sampled: the rows
    have the answers, docs/sft.md), or your own Engine by path."""
    replicas: Annotated[Processes, BeforeValidator(no_range)] = 1
    """Number of generator actors, each with its own engine; the run goes on while one is left, and starts lost ones
    again when there is room. `{min: 2, max: 8}`: begins with 2, takes up to 8 when there is room, needs 2 to go on."""
    min_replicas: Processes | None = None
    """Said with `replicas: {min: 2, max: 8}`; default: all of `replicas` to begin, one to go on."""
    max_new_tokens: PositiveInt = 256
    """Longest completion, in tokens."""
    max_prompt_tokens: PositiveInt = 1024
    """Rows with a longer prompt are left out (counted under `prompt_too_long`)."""
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(listed)] = []
    """Texts that end a completion, beside its end-of-sequence token, such as "</answer>". The tokens that complete one
    are sampled, trained and seen by the reward."""
    stop_token_ids: Annotated[list[NonNegativeInt], BeforeValidator(listed)] = []
    """Tokens that do, by their ids."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Sampling temperature; the trainer divides its logits by the same number."""
    kv_after_update: Literal["keep", "recompute"] = "keep"
    """Running requests at a weight update: go on with their old KV cache, or prefill again under the new weights. One
    that waits is computed with the new weights from its first token on, either way."""
    gpus_per_replica: Gpus = 0
    """GPUs of one engine (its tensor-parallel size is `engine_args.tensor_parallel_size`); 0 = CPU; 0.4 = that share
    of one GPU and of its memory, so that others may have the rest."""
    cpu_cores: Annotated[str | None, BeforeValidator(lambda cores: str(cores) if type(cores) is int else cores)] = None
    """Cores the CPU engine binds its threads to, such as "0-1" or "0"; default: all, or half of them beside a trainer
    on CPUs, shared by the replicas of one machine (`recipe/cores.py`)."""
    kv_cache_gib: Gib = 1.0
    """KV cache of an engine on CPUs or on a share of a GPU, in GiB (whole GPUs: `engine_args.gpu_memory_utilization`).
    """
    engine_args: dict[str, Any] = {}
    """Passed to vLLM's AsyncEngineArgs, or to your engine's constructor, untouched."""

    @property
    def first_replicas(self) -> int:
        """Generators that the run begins with."""
        return self.min_replicas or self.replicas

    @property
    def fewest_replicas(self) -> int:
        """Generators that must be left for it to go on."""
        return self.min_replicas or 1

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, values: Any) -> Any:
        """`replicas: {min, max}` as two keys."""
        said = values.get("replicas") if isinstance(values, Mapping) else None
        if not isinstance(said, Mapping) or set(said) != {"min", "max"}:
            return values
        return {**values, "replicas": said["max"], "min_replicas": said["min"]}
