"""Making the actors of a run from its recipe: generators, buffer, trainer. Nothing is loaded until `start`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asyncrl.buffer.actor import BufferActor
from asyncrl.buffer.follow import new_name
from asyncrl.cluster.placement import Places
from asyncrl.cluster.ray_cluster import num_nodes
from asyncrl.control.staleness import slots
from asyncrl.envs.pool import EnvSettings
from asyncrl.envs.wire import Load
from asyncrl.models import folder_here, local_config
from asyncrl.orchestrator.ranks import Ranks
from asyncrl.processes.nodes import ALMOST_NO_CPU
from asyncrl.recipe.check import context_of
from asyncrl.recipe.cores import SPIN, engine_cores, trainer_threads
from asyncrl.recipe.evaluation import EvalRecipe
from asyncrl.recipe.load import control_settings
from asyncrl.recipe.rollout import RolloutRecipe
from asyncrl.recipe.schema import Recipe
from asyncrl.recipe.teacher import TeacherRecipe
from asyncrl.registry import ENGINES, find
from asyncrl.rollout.engine import EngineConfig
from asyncrl.rollout.episode import RolloutSettings
from asyncrl.rollout.evaluation import EvalSettings
from asyncrl.rollout.generator import Generator, GeneratorConfig
from asyncrl.rollout.placed import RewardActor, RewardConfig
from asyncrl.rollout.policy import SamplingLimits
from asyncrl.storage.sight import Sight
from asyncrl.trainer.actor import TrainerActor

# Large tensors come and go in every step: without these glibc returns the pages each time and faults them in anew, in
# pieces of 4 KiB.
_KEEP_PAGES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

# A GPU's segments grow, where otherwise rows of ever other lengths leave gaps that nothing fits. Not for CUDA IPC: its
# handles are of blocks that stay as they are.
_GROWING = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}

_OTHER_CALLS = 1000
"""At least one cancel for each group that is given up at once."""
# Ray leaves an actor that asks for no GPU all that its node has.
_NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Actors:
    """Makes each role as often as it is needed: one that was lost is made again from the same words."""

    recipe: Recipe
    model: str
    sight: Sight
    """Of the run directory."""
    base_dir: Path
    places: Places

    @property
    def run_dir(self) -> Path:
        return self.sight.run_dir

    def buffer(self) -> ActorHandle:
        """On this node if it can be: here the journal's files are surely in reach."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        buffer = BufferActor.options(name=new_name(self.run_dir), scheduling_strategy=here)
        return buffer.remote(self.run_dir / "journal", self.recipe.journal)

    def generator(self, name: str, buffer: ActorHandle) -> ActorHandle:
        return Generator.options(
            num_cpus=ALMOST_NO_CPU,
            num_gpus=self.recipe.rollout.gpus_per_replica,
            max_concurrency=max_concurrency(self.recipe),
            runtime_env={"env_vars": {} if self.recipe.rollout.gpus_per_replica else _NO_GPU},
            scheduling_strategy=self.places.of_generator(_number(name)),
        ).remote(self._generator_config(name), buffer)

    @cached_property
    def reward_actors(self) -> tuple[ActorHandle, ...]:
        """Those of `rewards.placement`. Made once: Ray starts one that died again."""
        placement = self.recipe.rewards.placement
        if placement is None:
            return ()
        actor = RewardActor.options(
            num_cpus=max(placement.num_cpus, ALMOST_NO_CPU),
            num_gpus=placement.num_gpus,
            resources=placement.resources,
            memory=int(placement.memory_gib * 2**30) if placement.memory_gib else None,
            max_concurrency=max_concurrency(self.recipe),
            runtime_env={"env_vars": {} if placement.num_gpus else _NO_GPU},
            scheduling_strategy="SPREAD",
        )
        return tuple(actor.remote(reward_role(n), self._rewards()) for n in range(placement.replicas))

    def trainer(self, buffer: ActorHandle) -> Ranks:
        trainer = self.recipe.trainer
        channel = resolve_channel(self.recipe, self.base_dir)
        unless_set = SPIN | (_GROWING if trainer.gpus_per_rank and channel != "cuda_ipc" else {})
        environment = {
            "OMP_NUM_THREADS": str(trainer_threads(self.recipe)),
            **{name: os.environ.get(name, value) for name, value in unless_set.items()},
            **({} if trainer.gpus_per_rank else {**_KEEP_PAGES, **_NO_GPU}),
        }
        options = {
            "num_cpus": ALMOST_NO_CPU,
            "num_gpus": trainer.gpus_per_rank,
            "runtime_env": {"env_vars": environment},
        }
        handles = []
        for rank in range(trainer.ranks):
            actor = TrainerActor.options(**options, scheduling_strategy=self.places.of_rank(rank))
            handles.append(actor.remote(self.recipe, self.model, channel, self.base_dir, self.sight, buffer, rank))
        return Ranks(handles)

    def _generator_config(self, name: str) -> GeneratorConfig:
        recipe, rollout = self.recipe, self.recipe.rollout
        engine_config = EngineConfig(
            model=self.model,
            dtype=recipe.weights.dtype,
            channel=resolve_channel(recipe, self.base_dir),
            max_tokens=recipe.max_context,
            kv_after_update=rollout.kv_after_update,
            # Of machines that are to be found yet, nothing is known of who shares them.
            cpu_cores=engine_cores(recipe, _number(name), rollout.replicas if num_nodes() == 1 else 1),
            kv_cache_gib=rollout.kv_cache_gib,
            seed=recipe.seed,
            engine_args=dict(rollout.engine_args),
            num_gpus=rollout.gpus_per_replica,
        )
        settings = RolloutSettings(
            group_size=recipe.group_size,
            redundant_rollouts=recipe.env.redundant_rollouts if recipe.env else 0,
            max_prompt_tokens=rollout.max_prompt_tokens,
            limits=self._limits(rollout, recipe.max_tokens),
            filter_equal_rewards=recipe.algorithm.filter_equal_rewards,
            skip_special_tokens=recipe.rewards.skip_special_tokens,
            max_steps=recipe.max_steps,
            unscored=recipe.taught_alone,
        )
        return GeneratorConfig(
            name=name,
            engine=rollout.engine,
            engine_config=engine_config,
            settings=settings,
            rewards=self._rewards(),
            reward_actors=self.reward_actors,
            env=self._env_settings(),
            evaluations=tuple(map(self._eval_settings, recipe.eval)),
            base_dir=self.base_dir,
            teachers=tuple(recipe.algorithm.teacher),
            contexts=tuple(self._context(teacher) for teacher in recipe.algorithm.teacher),
            sight=self.sight,
            rollout_s=recipe.deadlines.rollout_s,
        )

    def _rewards(self) -> RewardConfig:
        recipe = self.recipe
        parts = {"": tuple(recipe.reward_parts), **{one.name: tuple(recipe.parts_of(one)) for one in recipe.eval}}
        named = {name: functions for name, functions in parts.items() if functions}
        return RewardConfig(named, self.base_dir, recipe.rewards, self.run_dir)

    def _context(self, teacher: TeacherRecipe) -> int | None:
        """A server refuses what is too long for it."""
        if teacher.url or teacher.hint is None:
            return None
        folder = folder_here(str(self.base_dir / teacher.model)) or folder_here(teacher.model)
        return context_of(local_config(folder)) if folder else None

    def _limits(self, rollout: RolloutRecipe, max_tokens: int) -> SamplingLimits:
        return SamplingLimits(
            max_new_tokens=rollout.max_new_tokens,
            max_tokens=max_tokens,
            temperature=rollout.temperature,
            seed=self.recipe.seed,
            max_turns=self.recipe.env.max_turns if self.recipe.env else 1,
            stop=tuple(rollout.stop),
            stop_token_ids=tuple(rollout.stop_token_ids),
        )

    def _eval_settings(self, part: EvalRecipe) -> EvalSettings:
        settings = RolloutSettings(
            group_size=part.n,
            max_prompt_tokens=self.recipe.rollout.max_prompt_tokens,
            limits=self._limits(self.recipe.evaluated(part), self.recipe.max_context),
            skip_special_tokens=self.recipe.rewards.skip_special_tokens,
            max_steps=self.recipe.max_steps,
            prefix=f"eval.{part.name}.",
        )
        return EvalSettings(part.name, settings)

    def _env_settings(self) -> EnvSettings | None:
        env, variables = self.recipe.env, dict(self.recipe.sources[0].chat_template_kwargs)
        if env is None:
            return None
        load = Load(
            env.path,
            self.base_dir,
            dict(env.kwargs),
            self.model,
            variables,
            env.tool_timeout_s,
            self.recipe.rollout.temperature,
            env.tool_parser,
        )
        log = self.sight.run_dir.resolve() / "environments.log"
        return EnvSettings(load, env.workers, env.episode_s, env.file_gib, env.memory_gib, log)


def max_concurrency(recipe: Recipe) -> int:
    """Calls that a generator takes at once: all groups of the run, and what else there is to say to it."""
    return slots(control_settings(recipe)) + _OTHER_CALLS


def reward_role(number: int) -> str:
    """What a reward actor is called."""
    return f"reward-{number}"


def _number(generator: str) -> int:
    """Of `generator-2`: 2."""
    return int(generator.rpartition("-")[2])


def resolve_channel(recipe: Recipe, base_dir: Path) -> str:
    """`auto`: none if the engine holds no weights. If all weights are sent between GPUs, cuda_ipc where trainer and
    generators share one, and nccl where each has its own. Else shared memory on one node and gloo on several."""
    if recipe.weights.channel != "auto":
        return recipe.weights.channel
    if not find(ENGINES, recipe.rollout.engine, base_dir, "rollout.engine").holds_weights:
        return "none"
    # Adapters are small, and merged into the base on the CPU.
    sizes = recipe.rollout.gpus_per_replica, recipe.trainer.gpus_per_rank
    if all(sizes) and not recipe.trainer.lora.rank:
        if recipe.on_one_gpu:
            return "cuda_ipc"
        # Two ranks of NCCL on one GPU are no more than an experiment of its own.
        if min(sizes) >= 1:
            return "nccl"
    return "shared_memory" if num_nodes() == 1 else "gloo"
