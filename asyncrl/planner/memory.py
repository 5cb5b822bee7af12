"""Bytes on a GPU: of a trainer rank, part by part as `trainer/` holds them, and of a generator.

P parameters, s ranks per copy of the model (FSDP2), d the width. On a rank:

    weights      4 P/s    fp32 masters; with LoRA the frozen base, in bf16, is whole on every rank
    gradients    4 P/s    fp32, of what is trained
    optimizer    8 P/s    AdamW's two moments; with trainer.optimizer.offload those of the largest parameter
    running mean 4 P/s    with trainer.ema
    bf16 copies  2 P on one rank; on several what FSDP2 gathers: the root and two layers
    activations  what autograd saves of each layer, for tokens_per_microbatch tokens; compiled layers save less
    head         the tiles of `algorithms/logprobs.py`
    staging      two copies of P/s in weights.dtype, the buffers they are sent from, and on rank 0 of several the
                 largest parameter twice (channel nccl; cuda_ipc: the copies alone)

While it loads, a rank that trains adapters has the whole model in fp32 (`trainer/model.py`), before it is rounded;
others, of a layer at a time, no more than what they keep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from asyncrl.planner.gpus import GIB, Gpu
from asyncrl.planner.shape import Shape
from asyncrl.planner.work import Work, adapter_parameters, channel, has_critic, needs_reference
from asyncrl.recipe.schema import Recipe

TRAINER_RESERVE = 2 * GIB
"""CUDA's context, NCCL's buffers, and what lies unused between tensors. An assumption."""
GENERATOR_RESERVE = 4 * GIB
"""Of vLLM within gpu_memory_utilization: activations of its largest batch, logits, CUDA graphs. An assumption. The
transfer's buffers are in what it leaves."""
GPU_MEMORY_UTILIZATION = 0.92
"""vLLM 0.32's default."""
TRANSFER_BUFFERS = 2 * 2**28
"""On either side of a push over NCCL (`weights/nccl.py`)."""
WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a number in `weights.dtype`."""
TILE = 8192
"""Edge of a tile of logits on a GPU (`algorithms/logprobs.py`)."""
_TILE_BYTES = 16
"""Per logit of a tile: in bf16 as it is computed, in fp32, its exponential, the product in fp32 and in bf16."""


@dataclass(frozen=True)
class Trainer:
    """Bytes of one rank, by what they are for."""

    parts: dict[str, float]
    loading: float
    """At start-up, when nothing but weights is there."""

    @property
    def total(self) -> float:
        return max(sum(self.parts.values()), self.loading)


@dataclass(frozen=True)
class Generator:
    """Bytes of one GPU of an engine, and what they hold."""

    weights: float
    kv_cache: float
    """What is left for it; less than 0 if the weights do not fit."""
    sequences: int
    """Of mean length that fit."""
    longest: float
    """KV cache of the longest request."""

    @property
    def fits(self) -> bool:
        return self.kv_cache >= self.longest


def trainer(recipe: Recipe, shape: Shape, ranks: int, shard_ranks: int) -> Trainer:
    """Of rank 0, which has the most."""
    whole, adapters = shape.parameters, adapter_parameters(recipe, shape)
    frozen, trained = (whole, adapters) if adapters else (0, whole)
    sent = WIDTH[recipe.weights.dtype]
    bf16 = recipe.trainer.precision != "fp32"
    head = recipe.trainer.tokens_per_microbatch * shape.hidden * 8 + min(shape.vocabulary, TILE) * TILE * _TILE_BYTES
    parts: dict[str, float] = {
        "weights": (2 if bf16 else 4) * frozen + 4 * trained / shard_ranks,
        "gradients": 4 * trained / shard_ranks,
        "optimizer": 8 * (min(trained, shape.embedding) if recipe.trainer.optimizer.offload else trained) / shard_ranks,
        "bf16 copies": _copies(recipe, shape, ranks, bf16),
        "activations": _activations(recipe, shape, ranks),
        "head": head + (0 if adapters or ranks > 1 else 4 * shape.embedding),
        "staging": 0.0,
        "reserve": TRAINER_RESERVE,
    }
    if channel(recipe) == "cuda_ipc":
        parts["staging"] = 2.0 * sent * trained
    if channel(recipe) == "nccl":
        gathered = 2 * sent * shape.embedding if ranks > 1 else 0
        parts["staging"] = 2 * sent * trained / shard_ranks + gathered + TRANSFER_BUFFERS
    if recipe.trainer.ema:
        parts["running mean"] = 4 * trained / shard_ranks
    if needs_reference(recipe) and not adapters:
        parts["reference"] = sent * whole / shard_ranks
    if has_critic(recipe):
        parts["critic"] = 16 * whole / shard_ranks
    return Trainer(parts, float(4 * whole + TRAINER_RESERVE) if adapters else 0.0)


def _copies(recipe: Recipe, shape: Shape, ranks: int, bf16: bool) -> float:
    """Of trained weights in the type of the products: all of them on one rank. FSDP2 gathers the root's (embedding and
    head) and two layers' parameters, with the gradients of the root and a layer as they are reduced."""
    if ranks == 1 or recipe.trainer.lora.rank:
        trained = adapter_parameters(recipe, shape) or shape.parameters
        return 2 * trained if bf16 else 0
    root = (1 if shape.tied else 2) * shape.embedding
    width = 2 if bf16 else 4
    return (2 * width + 4) * root + (3 * width + 4) * shape.layer_parameters


def activation_bytes(shape: Shape) -> int:
    """That autograd saves per token of a layer in bf16. Counted with torch's hooks on saved tensors; a test counts
    again."""
    attention = 4 * (shape.queries + shape.keys) + 4 * shape.heads
    if shape.qk_norm:
        attention += 6 * (shape.queries + shape.keys) + 4 * (shape.heads + shape.kv_heads)
    return 16 * shape.hidden + attention + 8 * shape.intermediate * max(1, shape.active_experts) + 8


def _activations(recipe: Recipe, shape: Shape, ranks: int) -> float:
    """With the gradients of one layer, which are about as large as what it saved."""
    factor = 2 if recipe.trainer.precision == "fp32" else 1
    layer = activation_bytes(shape) * factor
    kept = shape.layers * layer
    if recipe.trainer.gradient_checkpointing:
        kept = shape.layers * shape.hidden * 2 * factor + layer
    return float((kept + layer) * recipe.trainer.tokens_per_microbatch)


def generator(
    recipe: Recipe, shape: Shape, gpu: Gpu, num_gpus: float, work: Work, kv_cache_gib: float | None = None
) -> Generator:
    """Of an engine over so many GPUs, or on a share of one. `kv_cache_gib`: of its cache, if not all that is left."""
    args = recipe.rollout.engine_args
    of_whole = float(args.get("gpu_memory_utilization", GPU_MEMORY_UTILIZATION))
    usable = (num_gpus if num_gpus < 1 else of_whole) * gpu.memory_bytes
    num_gpus = math.ceil(num_gpus)
    weights = WIDTH[recipe.weights.dtype] * shape.parameters / num_gpus
    kv_cache = usable - weights - GENERATOR_RESERVE
    if kv_cache_gib is not None:
        # Less than nothing if there is no room for it.
        said = kv_cache_gib * GIB
        kv_cache = said if said <= kv_cache else kv_cache - said
    token = kv_bytes(recipe, shape, num_gpus)
    sequences = int(kv_cache // (token * (work.prompt_tokens + work.lengths.mean)))
    return Generator(weights, kv_cache, sequences, token * recipe.max_tokens)


def kv_bytes(recipe: Recipe, shape: Shape, num_gpus: int) -> int:
    """Keys and values of one token on one GPU, in the weights' type. No GPU holds less than one head's."""
    return 2 * WIDTH[recipe.weights.dtype] * shape.layers * shape.head_dim * max(1, -(-shape.kv_heads // num_gpus))
