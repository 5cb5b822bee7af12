"""Starting the actors of a run from its recipe: generators, buffer, trainer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ray.actor import ActorHandle

from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.engine import EngineConfig
from asyncrl.rollout.engines import engine_class
from asyncrl.rollout.episode import RolloutSettings
from asyncrl.rollout.generator import Generator, GeneratorConfig
from asyncrl.runtime.buffer import BufferActor
from asyncrl.trainer.actor import TrainerActor

# Large tensors come and go in every step: without these glibc returns the pages each time and faults them in anew.
_KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**28)}


@dataclass(frozen=True)
class Actors:
    """Handles; nothing is loaded until `start` is called on them."""

    generators: dict[str, ActorHandle]
    buffer: ActorHandle
    trainer: ActorHandle


def create(recipe: Recipe, model: str, run_dir: Path, base_dir: Path, version: int) -> Actors:
    """Place the actors. `version` is what the weights in `model` are called."""
    capacity = recipe.buffer.capacity_groups or (recipe.max_staleness + 1) * recipe.groups_per_step
    # A cancelled group may still arrive after its successor: room for one late frame per slot.
    buffer = BufferActor.remote(run_dir / "journal", 2 * capacity)
    channel = resolve_channel(recipe, base_dir)
    generators = {
        name: Generator.options(num_cpus=0, num_gpus=recipe.rollout.gpus_per_replica).remote(
            _generator_config(recipe, name, model, channel, base_dir, version), buffer
        )
        for name in (f"generator-{i}" for i in range(recipe.rollout.replicas))
    }
    threads = str(recipe.trainer.cpu_threads or os.cpu_count() or 1)
    environment = {"OMP_NUM_THREADS": threads, **({} if recipe.trainer.gpus_per_rank else _KEEP_PAGES)}
    trainer = TrainerActor.options(
        num_cpus=0, num_gpus=recipe.trainer.gpus_per_rank, runtime_env={"env_vars": environment}
    ).remote(recipe, model, channel, base_dir, buffer)
    return Actors(generators, buffer, trainer)


def resolve_channel(recipe: Recipe, base_dir: Path) -> str:
    """`auto`: none if the engine holds no weights, nccl if generators and trainer have GPUs, else gloo."""
    if recipe.weights.channel != "auto":
        return recipe.weights.channel
    if not engine_class(recipe.rollout.engine, base_dir).holds_weights:
        return "none"
    return "nccl" if recipe.rollout.gpus_per_replica and recipe.trainer.gpus_per_rank else "gloo"


def _generator_config(
    recipe: Recipe, name: str, model: str, channel: str, base_dir: Path, version: int
) -> GeneratorConfig:
    rollout = recipe.rollout
    engine_config = EngineConfig(
        model=model,
        dtype=recipe.weights.dtype,
        channel=channel,
        max_tokens=rollout.max_prompt_tokens + rollout.max_new_tokens,
        kv_after_update=rollout.kv_after_update,
        cpu_cores=rollout.cpu_cores or f"0-{(os.cpu_count() or 1) - 1}",
        kv_cache_gib=rollout.kv_cache_gib,
        seed=recipe.seed,
        engine_args=dict(rollout.engine_args),
    )
    settings = RolloutSettings(
        group_size=recipe.group_size,
        max_new_tokens=rollout.max_new_tokens,
        max_prompt_tokens=rollout.max_prompt_tokens,
        temperature=rollout.temperature,
        seed=recipe.seed,
    )
    return GeneratorConfig(
        name=name,
        engine=rollout.engine,
        engine_config=engine_config,
        settings=settings,
        reward=recipe.reward,
        base_dir=base_dir,
        reward_workers=recipe.rewards.workers,
        reward_timeout_s=recipe.rewards.timeout_s,
        data_path=recipe.data.path,
        start_version=version,
    )
