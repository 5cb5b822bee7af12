"""Ways to divide N GPUs between generators and trainer ranks, and what keeps one from fitting."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from asyncrl.cluster.shape import GPUS_PER_NODE, Piece, place
from asyncrl.errors import UserError
from asyncrl.planner import memory
from asyncrl.planner.gpus import GIB, Gpu
from asyncrl.planner.shape import Shape
from asyncrl.planner.work import Work
from asyncrl.recipe.schema import Recipe


@dataclass(frozen=True)
class Split:
    """Generators of some GPUs each, and trainer ranks of one; or shares of one GPU."""

    replicas: int
    gpus_per_replica: float
    ranks: int
    shard_ranks: int
    """Ranks that hold one copy of the model together."""
    gpus_per_rank: float = 1
    kv_cache_gib: float | None = None
    """Of a generator that has a share."""

    @property
    def num_gpus(self) -> int:
        return math.ceil(self.replicas * self.gpus_per_replica + self.ranks * self.gpus_per_rank - 1e-6)

    def overrides(self, recipe: Recipe) -> str:
        """Keys that make the recipe this split."""
        g = self.gpus_per_replica
        wanted: dict[str, object] = {
            "rollout.replicas": self.replicas,
            "rollout.gpus_per_replica": g,
            "rollout.engine_args.tensor_parallel_size": math.ceil(g),
            "trainer.ranks": self.ranks,
            "trainer.gpus_per_rank": self.gpus_per_rank,
            **({} if self.kv_cache_gib is None else {"rollout.kv_cache_gib": self.kv_cache_gib}),
        }
        there = {
            "rollout.gpus_per_replica": recipe.rollout.gpus_per_replica,
            "rollout.engine_args.tensor_parallel_size": g if _pipelined(recipe) else _tensor_parallel(recipe),
            "trainer.gpus_per_rank": recipe.trainer.gpus_per_rank,
            "rollout.kv_cache_gib": recipe.rollout.kv_cache_gib,
        }
        if self.shard_ranks != (recipe.trainer.shard_ranks or self.ranks):
            wanted["trainer.shard_ranks"] = "null" if self.shard_ranks == self.ranks else self.shard_ranks
        return " ".join(f"{key}={value}" for key, value in wanted.items() if there.get(key) != value)

    @classmethod
    def of(cls, recipe: Recipe) -> Split:
        """The one that the recipe has."""
        rollout, trainer = recipe.rollout, recipe.trainer
        shard_ranks = trainer.shard_ranks or trainer.ranks
        of_rank = trainer.gpus_per_rank or 1
        cache_gib = rollout.kv_cache_gib if 0 < rollout.gpus_per_replica < 1 else None
        return cls(rollout.replicas, rollout.gpus_per_replica, trainer.ranks, shard_ranks, of_rank, cache_gib)


def splits(recipe: Recipe, shape: Shape, gpu: Gpu, num_gpus: int, work: Work) -> list[Split]:
    """All that fit. Raises UserError if none does: what is too large, and what to change."""
    if num_gpus == 1:
        return [_shared(recipe, shape, gpu, work)]
    sizes = [size for size in _engine_sizes(recipe, shape) if size < num_gpus]
    fitting = [size for size in sizes if memory.generator(recipe, shape, gpu, size, work).fits]
    if not fitting:
        raise UserError(_generator_fault(recipe, shape, gpu, sizes[-1] if sizes else 1, work))
    found = list(_with(recipe, shape, gpu, num_gpus, fitting))
    if not found:
        raise UserError(_trainer_fault(recipe, shape, gpu, num_gpus - min(fitting)))
    return found


def _engine_sizes(recipe: Recipe, shape: Shape) -> list[int]:
    """GPUs of one engine: powers of two by tensor parallelism on one node; with pipelines those of the recipe."""
    if _pipelined(recipe):
        return [int(max(1, recipe.rollout.gpus_per_replica))]
    sizes = {1, 2, 4, 8, _tensor_parallel(recipe)}
    return sorted(size for size in sizes if shape.heads % size == 0 and size <= GPUS_PER_NODE)


def _tensor_parallel(recipe: Recipe) -> int:
    return int(recipe.rollout.engine_args.get("tensor_parallel_size", 1))


def _pipelined(recipe: Recipe) -> bool:
    return int(recipe.rollout.engine_args.get("pipeline_parallel_size", 1)) > 1


def _with(recipe: Recipe, shape: Shape, gpu: Gpu, num_gpus: int, sizes: list[int]) -> Iterator[Split]:
    for size in sizes:
        for replicas in range(1, (num_gpus - 1) // size + 1):
            split = Split(replicas, size, ranks := num_gpus - replicas * size, _shard_ranks(recipe, ranks))
            pieces = [Piece("generator", size)] * replicas + [Piece("trainer rank", 1)] * ranks
            nodes = [min(GPUS_PER_NODE, num_gpus - start) for start in range(0, num_gpus, GPUS_PER_NODE)]
            held = memory.trainer(recipe, shape, ranks, split.shard_ranks)
            usable = ranks <= recipe.groups_per_step * recipe.group_size
            if usable and held.total <= gpu.memory_bytes and not place(pieces, nodes):
                yield split


def _shared(recipe: Recipe, shape: Shape, gpu: Gpu, work: Work) -> Split:
    """One GPU: the trainer has what it needs, and the generator the rest, unless the recipe says shares that fit."""
    held = memory.trainer(recipe, shape, 1, 1)
    least = math.ceil(held.total / gpu.memory_bytes * 20) / 20
    own = [Split.of(recipe)] if recipe.on_one_gpu else []
    rest = round(1 - least, 2)
    # A share that is none has no cache either.
    left = memory.generator(recipe, shape, gpu, max(rest, 0.05), work).kv_cache
    cache_gib = max(0.0, math.floor(left / GIB * 2) / 2)
    for split in (*own, Split(1, rest, 1, 1, least, cache_gib)):
        share = split.gpus_per_replica
        has_room = share > 0 and held.total <= split.gpus_per_rank * gpu.memory_bytes
        if has_room and memory.generator(recipe, shape, gpu, share, work, split.kv_cache_gib).fits:
            return split
    needs = memory.generator(recipe, shape, gpu, 1, work)
    asked = (held.total + needs.weights + needs.longest + memory.GENERATOR_RESERVE) / GIB
    most = max(held.parts, key=lambda name: held.parts[name])
    keys = [
        "a larger --gpu",
        "--gpus 2",
        "a lower trainer.tokens_per_microbatch",
        *(["trainer.gradient_checkpointing=true"] if not recipe.trainer.gradient_checkpointing else []),
        *(["trainer.lora.rank=32"] if not recipe.trainer.lora.rank else []),
    ]
    raise UserError(
        f"one {gpu.name} ({gpu.memory_gib:.0f} GiB) has no room for trainer and generator of {recipe.model}: they need "
        f"{asked:.0f} GiB, {held.total / GIB:.0f} of it the trainer's ({most} {held.parts[most] / GIB:.0f}); say "
        f"{', '.join(keys[:-1])} or {keys[-1]}"
    )


def _shard_ranks(recipe: Recipe, ranks: int) -> int:
    """The recipe's, if it divides the ranks."""
    asked = recipe.trainer.shard_ranks
    return asked if asked and ranks % asked == 0 else ranks


def _generator_fault(recipe: Recipe, shape: Shape, gpu: Gpu, size: int, work: Work) -> str:
    held = memory.generator(recipe, shape, gpu, size, work)
    return (
        f"rollout: {recipe.model} does not fit {size} x {gpu.name} ({gpu.memory_gib:.0f} GiB): its weights take "
        f"{held.weights / GIB:.0f} GiB of each, the longest request {held.longest / GIB:.1f} GiB, and "
        f"{max(0.0, held.kv_cache) / GIB:.1f} GiB are left for it; say a larger --gpu or --gpus, "
        "or lower rollout.max_new_tokens"
    )


def _trainer_fault(recipe: Recipe, shape: Shape, gpu: Gpu, ranks: int) -> str:
    shard_ranks = _shard_ranks(recipe, ranks)
    held = memory.trainer(recipe, shape, ranks, shard_ranks)
    if held.loading > gpu.memory_bytes:
        return (
            "trainer: with adapters a rank loads the whole model in fp32 before it is rounded, "
            f"{held.loading / GIB:.0f} GiB, and a {gpu.name} has {gpu.memory_gib:.0f}; say a larger --gpu, or take a "
            "smaller model"
        )
    if held.total <= gpu.memory_bytes:
        return (
            f"trainer: no division of the GPUs over nodes of {GPUS_PER_NODE} has room for ranks and generators; "
            "say other --gpus"
        )
    most = max(held.parts, key=lambda name: held.parts[name])
    cure = "" if recipe.trainer.gradient_checkpointing else ", set trainer.gradient_checkpointing=true"
    return (
        f"trainer: each of {ranks} rank(s) needs {held.total / GIB:.0f} GiB ({most} {held.parts[most] / GIB:.0f}), and "
        f"a {gpu.name} has {gpu.memory_gib:.0f}; lower trainer.tokens_per_microbatch{cure}, or say more --gpus"
    )
