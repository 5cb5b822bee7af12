"""The generator actor: owns one engine and one reward pool, runs groups, sends them to the buffer encoded.

    driver --start(task)--> Generator --frame--> buffer actor
                                |  \\--summary--> driver
                  weight channel --update--> engine (pause, load, stamp, resume)

Waits for: engine tokens, rewards, the buffer's acknowledgement. Unblocked by: the engine; the driver's deadline.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from asyncrl.data.tasks import Task
from asyncrl.rewards.pool import RewardPool
from asyncrl.rollout.engine import EngineConfig, EngineDead
from asyncrl.rollout.episode import GroupAborted, GroupRunner, PromptTooLong, RolloutSettings, request_ids
from asyncrl.rollout.occupancy import Occupancy
from asyncrl.rollout.trajectory import Group, encode
from asyncrl.weights.channel import WeightUpdate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratorConfig:
    """Everything a generator needs to start, on whatever machine it lands."""

    name: str
    engine: str
    engine_config: EngineConfig
    settings: RolloutSettings
    reward: str
    base_dir: Path
    reward_workers: int
    reward_timeout_s: float
    data_path: str
    start_version: int


@dataclass(frozen=True)
class GroupSummary:
    """What the driver learns of a group; the trajectories themselves go to the buffer."""

    task: int
    attempt: int
    outcome: str
    """`finished`, `filtered`, `failed` or `aborted`."""
    reason: str = ""
    oldest_version: int = -1
    newest_version: int = -1
    num_tokens: int = 0
    """Sampled tokens."""
    num_mixed: int = 0
    """Trajectories whose tokens carry more than one version."""
    in_flight: float = 0.0
    """Mean over trajectories of newest - oldest version: how much they aged while running."""
    rewards: list[float | None] = field(default_factory=list)
    extras: list[dict[str, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    sample: dict[str, Any] = field(default_factory=dict)
    """One trajectory in words, for people: prompt, token strings, their versions, reward."""


@ray.remote(max_concurrency=1000)
class Generator:
    """Async actor; `run_group` calls overlap, the engine batches them."""

    def __init__(self, config: GeneratorConfig, buffer: Any) -> None:
        self.config = config
        self.buffer = buffer
        self.occupancy = Occupancy()
        self.tokens_generated = 0

    async def start(self) -> dict[str, Any]:
        """Load model and tokenizer, start the reward processes; returns the actor's pid and engine worker count."""
        from asyncrl.models import load_tokenizer
        from asyncrl.rollout.engines import engine_class

        config = self.config
        self.rewards = RewardPool(
            config.reward,
            config.base_dir,
            config.reward_workers,
            config.reward_timeout_s,
            dataset=config.data_path,
        )
        self.engine = engine_class(config.engine, config.base_dir)(config.engine_config)
        await self.engine.start(config.start_version)
        self.runner = GroupRunner(
            self.engine, load_tokenizer(config.engine_config.model), self.rewards, config.settings
        )
        self.occupancy.take()
        args = config.engine_config.engine_args
        workers = args.get("tensor_parallel_size", 1) * args.get("pipeline_parallel_size", 1)
        return {"pid": os.getpid(), "num_workers": workers}

    async def run_group(self, task: Task, attempt: int) -> GroupSummary:
        """Run one group to its end. An error becomes outcome `failed`, but EngineDead is raised."""
        self.occupancy.add_running(+1)
        try:
            group, texts = await self.runner.run(task, attempt)
            summary = self._summary(group, task, texts)
            if summary.outcome == "finished":
                await self.buffer.put.remote(task.number, attempt, encode(group))
            return summary
        except PromptTooLong:
            return GroupSummary(task.number, attempt, "filtered", "prompt_too_long")
        except GroupAborted:
            return GroupSummary(task.number, attempt, "aborted")
        except EngineDead:
            raise
        except Exception as error:
            logger.exception("task %d failed on %s", task.number, self.config.name)
            return GroupSummary(task.number, attempt, "failed", f"{type(error).__name__}: {error}"[:300])
        finally:
            self.occupancy.add_running(-1)

    def _summary(self, group: Group, task: Task, texts: list[str]) -> GroupSummary:
        sampled = [t.versions[t.versions >= 0] for t in group.trajectories]
        spans = [int(v.max() - v.min()) if len(v) else 0 for v in sampled]
        num_tokens = sum(len(v) for v in sampled)
        self.tokens_generated += num_tokens
        oldest, newest = group.version_range
        common = {
            "rewards": [t.reward for t in group.trajectories],
            "extras": [t.extras for t in group.trajectories],
            "errors": [t.error for t in group.trajectories if t.error],
            "num_tokens": num_tokens,
        }
        if oldest < 0:
            return GroupSummary(group.task, group.attempt, "failed", "reward", **common)
        first = group.trajectories[0]
        words = [self.runner.tokenizer.decode([t]) for t in first.tokens[first.prompt_length :]]
        return GroupSummary(
            group.task,
            group.attempt,
            "finished",
            oldest_version=oldest,
            newest_version=newest,
            num_mixed=sum(s > 0 for s in spans),
            in_flight=sum(spans) / len(spans),
            sample={
                "task": group.task,
                "prompt": task.prompt if isinstance(task.prompt, str) else task.prompt[-1]["content"],
                "completion": texts[0],
                "tokens": words,
                "versions": first.versions[first.prompt_length :].tolist(),
                "reward": first.reward,
            },
            **common,
        )

    async def cancel_group(self, task: int, attempt: int) -> None:
        """End a running group; its `run_group` returns `aborted`."""
        await self.engine.cancel(request_ids(task, attempt, self.config.settings.group_size))

    async def join_channel(self, init_info: dict[str, Any]) -> None:
        await self.engine.join_channel(init_info)

    async def update_weights(self, update: WeightUpdate) -> float:
        """Seconds that generation stood still. Running groups stay where they are (partial rollout)."""
        self.occupancy.set_paused(True)
        pause_s = await self.engine.update_weights(update)
        self.occupancy.set_paused(False)
        return pause_s

    async def score(self, tokens: list[int]) -> list[float]:
        return await self.engine.score(tokens)

    async def ping(self) -> None:
        """A sign of life."""

    async def take_stats(self) -> dict[str, float]:
        """Seconds busy, paused and idle, and tokens sampled, since the last call."""
        tokens, self.tokens_generated = self.tokens_generated, 0
        return {**self.occupancy.take(), "tokens": tokens}

    async def close(self) -> None:
        self.rewards.close()
        await self.engine.close()
