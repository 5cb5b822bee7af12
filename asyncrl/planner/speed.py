"""Seconds that things take on a GPU: floating-point operations and bytes over the part of its peak that software
reaches.

Training, per token: 2 operations per weight forward, 4 backward (Kaplan et al. 2020, arXiv:2001.08361), 2 more where
activations are recomputed, 2 for each no-grad forward; 4 per pair of tokens and query channel for attention.
Decoding, per step: every weight is read once, the KV cache of each sequence once, and each makes its products (Pope et
al. 2022, arXiv:2211.05102). The parts are added, where good kernels overlap some of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from asyncrl.cluster.shape import GPUS_PER_NODE
from asyncrl.planner import memory
from asyncrl.planner.engine import DecodeSpeed
from asyncrl.planner.gpus import NETWORK_BYTES_PER_S, Gpu
from asyncrl.planner.shape import Shape
from asyncrl.planner.work import (
    Work,
    adapter_parameters,
    channel,
    has_critic,
    num_gradients,
    passes_without_gradient,
    trained_share,
)
from asyncrl.recipe.schema import Recipe

MODEL_FLOPS_UTILIZATION = 0.32
"""Of a training pass: 0.176 s for 6,358 tokens of a model of 1.39 B parameters on an H100, in one row, with Triton's
attention. torchtitan reaches 0.33 with Llama 3.1 8B on 8 H100 (its docs/performance.md)."""
INFERENCE_FLOPS_UTILIZATION = 0.4
"""Of prefill and of the products of decoding. An assumption."""
FP32_SPEED = 1 / 15
"""Of products in fp32 over those in bf16: 67 against 989 TFLOP/s on an H100, 19.5 against 312 on an A100."""
BANDWIDTH_UTILIZATION = 0.7
"""Of memory and of links. An assumption; a copy kernel reaches 0.9 of memory."""
DECODE_STEP_S = 0.004
"""Scheduler, sampling and launches of one vLLM step. An assumption."""
ALL_REDUCE_S = 15e-6
"""Latency of one of tensor parallelism's two sums per layer. An assumption."""
TRAIN_STEP_S = 0.1
"""Of a step outside the passes. Laying out 64 trajectories took about 0.03 s; fetching and decoding them is assumed."""
SHARED = 2.0
"""How much longer trainer and generator take where they share a GPU: their kernels take turns. An assumption."""
PUSH_S = 1.0
"""Of a push beside the transfer: pausing, vLLM's reload, resuming. An assumption."""
HOST_BYTES_PER_S = 20e9
"""Between a GPU and the host's memory: 0.6 of PCIe 4.0 x16, which every GPU here has or exceeds."""
PAGE_CACHE_BYTES_PER_S = 5e9
"""Reading the base model for a push of adapters. An assumption."""
MAX_SEQUENCES = {True: 1024, False: 256}
"""vLLM 0.32's default max_num_seqs, on GPUs of at least 70 GiB other than the A100, and on others."""


@dataclass(frozen=True)
class TrainSpeed:
    """Seconds per completion token of a batch, and of a step beside."""

    token_s: float
    step_s: float


def decode(
    recipe: Recipe, shape: Shape, gpu: Gpu, num_gpus: float, work: Work, kv_cache_gib: float | None = None
) -> DecodeSpeed:
    """Of one engine over so many GPUs, or on a share of the memory of one that it has for itself."""
    bandwidth = gpu.memory_bytes_per_s * BANDWIDTH_UTILIZATION
    held = memory.generator(recipe, shape, gpu, num_gpus, work, kv_cache_gib)
    num_gpus = math.ceil(num_gpus)
    large = gpu.memory_gib >= 70 and "A100" not in gpu.name
    limit = int(recipe.rollout.engine_args.get("max_num_seqs", MAX_SEQUENCES[large]))
    flops_per_s = gpu.flops_per_s * (FP32_SPEED if recipe.weights.dtype == "float32" else 1)
    products_s = 2 * _active(shape) / (num_gpus * flops_per_s * INFERENCE_FLOPS_UTILIZATION)
    # The prompt of a group is computed once (vLLM's prefix cache), in steps that the others wait for.
    prefill_s = products_s * work.prompt_tokens / (work.group_size * work.lengths.mean)
    cache_s = memory.kv_bytes(recipe, shape, num_gpus) * work.context_tokens / bandwidth
    sums_s = 2 * shape.layers * ALL_REDUCE_S if num_gpus > 1 else 0.0
    return DecodeSpeed(
        step_s=held.weights / bandwidth + sums_s + DECODE_STEP_S,
        token_s=products_s + prefill_s + cache_s,
        max_sequences=max(1, min(limit, held.sequences)),
    )


def _active(shape: Shape) -> int:
    return shape.active_body + shape.embedding


def train(recipe: Recipe, shape: Shape, gpu: Gpu, ranks: int, shard_ranks: int, work: Work) -> TrainSpeed:
    """Of all ranks together."""
    adapters = adapter_parameters(recipe, shape)
    share = trained_share(recipe)
    body = 2 * shape.active_body * work.row_tokens / work.completion_tokens
    body += 4 * shape.layers * shape.queries * work.context_tokens
    head = 2 * shape.embedding
    backward = 1 if adapters else 2
    with_gradient = (1 + backward + recipe.trainer.gradient_checkpointing) * body + (2 + backward) * head
    number = num_gradients(recipe) * (1 + has_critic(recipe))
    flops = share * (number * with_gradient + passes_without_gradient(recipe) * (body + head))
    flops_per_s = gpu.flops_per_s * (FP32_SPEED if recipe.trainer.precision == "fp32" else 1)
    token_s = flops / (ranks * flops_per_s * MODEL_FLOPS_UTILIZATION)
    trained = adapters or shape.parameters
    bandwidth = gpu.memory_bytes_per_s * BANDWIDTH_UTILIZATION
    updates = recipe.trainer.epochs * recipe.trainer.minibatches
    # Zeroing, the norm, AdamW's four tensors read and three written: 40 bytes a parameter; and the copy for a push.
    optimizer_s = (40 * updates + 6) * trained / shard_ranks / bandwidth
    waits_s = _exposed(recipe, trained, gpu, ranks, shard_ranks, work, token_s)
    return TrainSpeed(token_s, TRAIN_STEP_S + optimizer_s + waits_s)


def _exposed(recipe: Recipe, trained: int, gpu: Gpu, ranks: int, shard_ranks: int, work: Work, token_s: float) -> float:
    """Seconds of a step in which ranks wait for one another's parameters and gradients: what each micro-batch's
    transfers take longer than its products. Gathered forward and backward in bf16, reduced in fp32."""
    if ranks == 1:
        return 0.0
    tokens = work.row_tokens * trained_share(recipe)
    passes = num_gradients(recipe)
    number = passes * max(recipe.trainer.minibatches, -(-tokens // (ranks * recipe.trainer.tokens_per_microbatch)))
    gathered = 2 * trained if recipe.trainer.lora.rank == 0 else 0
    sharding_s = (2 * gathered + 4 * trained) * (shard_ranks - 1) / shard_ranks / _link(gpu, shard_ranks)
    copies = ranks // shard_ranks
    copying_s = 2 * 4 * trained / shard_ranks * (copies - 1) / copies / _link(gpu, ranks)
    products_s = token_s * work.completion_tokens / number
    return float(number * max(0.0, sharding_s + copying_s - products_s))


def _link(gpu: Gpu, num_gpus: int) -> float:
    bytes_per_s = gpu.link_bytes_per_s if num_gpus <= GPUS_PER_NODE else min(gpu.link_bytes_per_s, NETWORK_BYTES_PER_S)
    return bytes_per_s * BANDWIDTH_UTILIZATION


def push(recipe: Recipe, shape: Shape, gpu: Gpu, num_gpus: int, ranks: int) -> float:
    """Seconds that generators stand still for new weights, with `num_gpus` in the run."""
    width = memory.WIDTH[recipe.weights.dtype]
    if recipe.trainer.lora.rank:
        return PUSH_S + width * shape.parameters / PAGE_CACHE_BYTES_PER_S
    if channel(recipe) == "cuda_ipc":
        return PUSH_S + 2 * width * shape.parameters / (gpu.memory_bytes_per_s * BANDWIDTH_UTILIZATION)
    if channel(recipe) != "nccl":
        return PUSH_S + width * shape.parameters * (1 / HOST_BYTES_PER_S + 1 / PAGE_CACHE_BYTES_PER_S)
    # Rank 0 gathers a parameter, then sends it to all.
    return PUSH_S + width * shape.parameters * (2 if ranks > 1 else 1) / _link(gpu, num_gpus)


def checkpoint(recipe: Recipe, shape: Shape, shard_ranks: int) -> float:
    """Seconds that a step stands still for a checkpoint: masters and moments are copied to the host."""
    trained = adapter_parameters(recipe, shape) or shape.parameters
    return 12 * trained / shard_ranks / HOST_BYTES_PER_S
