"""The generator actor: owns one engine and one reward pool, runs groups, sends them to the buffer encoded.

    driver --start(task)--> Generator --frame--> buffer actor
                                |  \\--summary--> driver
                  weight channel --update--> engine (pause, load, stamp, resume)

Waits for: engine tokens, rewards, the buffer's acknowledgement. Unblocked by: the engine; the driver's deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from asyncrl.data.prompts import BadPrompt
from asyncrl.envs.pool import EnvPool, EnvSettings
from asyncrl.errors import RunFailed
from asyncrl.observe import relay, trace
from asyncrl.processes import orphans, stacks
from asyncrl.processes.crossing import crossing
from asyncrl.recipe.teacher import TeacherRecipe
from asyncrl.registry import ENGINES, find
from asyncrl.rewards.pool import RewardPool
from asyncrl.rollout.demonstrations import RowRunner
from asyncrl.rollout.engine import EngineConfig, EngineDead
from asyncrl.rollout.episode import GroupRunner, RolloutSettings
from asyncrl.rollout.evaluation import EvalSettings, TaskScores
from asyncrl.rollout.occupancy import Occupancy
from asyncrl.rollout.outbox import Outbox
from asyncrl.rollout.placed import PlacedRewards, RewardConfig
from asyncrl.rollout.policy import GroupAborted
from asyncrl.rollout.summary import GroupSummary, filtered, summarise
from asyncrl.rollout.teaching import Teaching
from asyncrl.rollout.trajectory import Group, encode
from asyncrl.storage.sight import Sight
from asyncrl.task import DATA, Task
from asyncrl.weights.update import WeightUpdate
from asyncrl.weights.verify import probe_tokens

logger = logging.getLogger(__name__)

_ANSWERS = ("answer", "ground_truth", "solution", "label", "target")
_MOST_EXPECTED_CHARS = 500


@dataclass(frozen=True)
class GeneratorConfig:
    """Everything a generator needs to start, on whatever machine it lands."""

    name: str
    engine: str
    engine_config: EngineConfig
    settings: RolloutSettings
    rewards: RewardConfig
    reward_actors: tuple[ActorHandle, ...]
    """Those of `rewards.placement`; none: it has reward processes of its own."""
    env: EnvSettings | None
    evaluations: tuple[EvalSettings, ...]
    base_dir: Path
    teachers: tuple[TeacherRecipe, ...]
    contexts: tuple[int | None, ...]
    """Positions of each teacher; None if not known."""
    sight: Sight
    """Of the run directory."""
    rollout_s: float
    """Deadline of a group."""


@ray.remote
@crossing
class Generator:
    """Async actor; `run_group` calls overlap, the engine batches them. It takes more calls at once than there can be
    groups (`actors.max_concurrency`), so that pings, pushes and cancels never wait for one."""

    def __init__(self, config: GeneratorConfig, buffer: Any) -> None:
        relay.relay()
        self.config = config
        self.outbox = Outbox(buffer)
        self.occupancy = Occupancy()
        self.tokens_generated = 0
        self.teaching: Teaching | None = None
        self.transfers = 0
        """Of weights, that are in flight."""

    async def placed(self) -> None:
        """Answers once Ray has found room for it."""

    async def start(self) -> dict[str, Any]:
        """Load model and tokenizer, start the reward processes; says what processes there are now, and where."""
        from asyncrl.models import load_tokenizer

        config, run_dir = self.config, self.config.sight.run_dir
        if config.engine_config.channel == "disk" or Path(config.engine_config.model).is_relative_to(run_dir):
            await asyncio.to_thread(config.sight.require, config.name)
        stacks.record(run_dir / "stacks", config.name)
        self.rewards = self._rewards()
        self.environment = EnvPool(config.env) if config.env else None
        self.engine = find(ENGINES, config.engine, config.base_dir, "rollout.engine")(config.engine_config)
        await asyncio.gather(self.engine.start(), *([self.environment.start()] if self.environment else []))
        tokenizer = load_tokenizer(config.engine_config.model)
        self.probe = probe_tokens(tokenizer, config.settings.limits.max_tokens)
        self.teaching = Teaching(config.teachers, config.contexts, config.settings.unscored, tokenizer)
        self.runner: GroupRunner | RowRunner = GroupRunner(
            *(self.engine, tokenizer, self.rewards.get(""), config.settings),
            *(self.occupancy, self.environment, self.teaching),
        )
        if config.engine == DATA:
            self.runner = RowRunner(self.engine, tokenizer, config.settings.limits.max_tokens)
        self.evaluations = {
            one.name: GroupRunner(
                *(self.engine, tokenizer, self.rewards.get(one.name, self.rewards.get("")), one.rollout),
                *(self.occupancy, self.environment),
            )
            for one in config.evaluations
        }
        probe = await self._first_probe()
        self.occupancy.take()
        return {**orphans.here(), "num_workers": config.engine_config.num_workers, "probe": probe}

    def _rewards(self) -> Mapping[str, RewardPool | PlacedRewards]:
        """Who scores, by evaluation, as `RewardConfig` has them."""
        rewards, actors = self.config.rewards, self.config.reward_actors
        if not actors:
            return rewards.pools()
        return {name: PlacedRewards(actors, name, self.config.rollout_s / 2) for name in rewards.parts}

    async def _first_probe(self) -> list[float] | str | None:
        """Log-probs before any push; in words why there are none; None from an engine that holds no weights."""
        if not self.engine.holds_weights:
            return None
        try:
            return (await self.score_probe())[1]
        except EngineDead:
            raise
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    async def run_group(self, task: Task, attempt: int) -> GroupSummary:
        """Run one group to its end. An error becomes outcome `failed`; one that is not the group's is raised:
        EngineDead, and RunFailed if the journal does not take the group."""
        self.occupancy.add_running(+1)
        try:
            finished = await self.runner.run(task, attempt)
            group = finished.group
            summary = summarise(group, self.config.settings.filter_equal_rewards)
            self.tokens_generated += summary.num_tokens
            if summary.outcome == "finished":
                await self.outbox.put(task.number, attempt, encode(group))
            sample = await self._sample(group, task, finished.texts[0])
            replaced, tools, taught = finished.replaced, finished.tools, finished.taught
            return replace(summary, sample=sample, replaced=replaced, tools=tools, taught=taught)
        except BadPrompt as fault:
            return filtered(task.number, attempt, fault)
        except GroupAborted:
            return GroupSummary(task.number, attempt, "aborted")
        except (EngineDead, RunFailed):
            raise
        except Exception as error:
            logger.exception("task %d failed on %s", task.number, self.config.name, extra={relay.TOLD: True})
            return GroupSummary(task.number, attempt, "failed", f"{type(error).__name__}: {error}"[:300])
        finally:
            self.occupancy.add_running(-1)

    async def evaluate(self, name: str, task: Task) -> TaskScores:
        """Roll a held-out task out and score it; an error that is the task's counts as a failure of its rollouts.
        Raises EngineDead."""
        runner = self.evaluations[name]
        self.occupancy.add_running(+1)
        try:
            finished = await runner.run(task, 0)
            scores = TaskScores.of(task, finished)
            self.tokens_generated += sum(scores.num_tokens)
            return scores
        except EngineDead:
            raise
        except Exception as error:
            what = str(error) if isinstance(error, BadPrompt) else f"{type(error).__name__}: {error}"
            return TaskScores.failed(task, runner.settings.group_size, what[:300])
        finally:
            self.occupancy.add_running(-1)

    async def _sample(self, group: Group, task: Task, text: str) -> dict[str, Any]:
        """The first trajectory in words, for people."""
        first = group.trajectories[0]
        prompt = task.prompt if isinstance(task.prompt, str) else task.prompt[-1]["content"]
        if self.environment is not None or task.answers:  # which may ask otherwise, and more than once
            prompt = await self.runner.texts.text(first.tokens[: first.prompt_length].tolist())
            text = await self.runner.texts.text(first.tokens[first.prompt_length :].tolist())
        return {
            "task": group.task,
            "prompt": prompt,
            "completion": text,
            "tokens": await self.runner.texts.words(first.tokens[first.prompt_length :].tolist()),
            "versions": first.versions[first.prompt_length :].tolist(),
            **({} if task.answers else {"reward": first.reward, **_expected(task.row)}),
            **({"notes": first.notes} if first.notes else {}),
        }

    async def cancel_group(self, task: int, attempt: int) -> None:
        """End a running group; its `run_group` returns `aborted`."""
        await self.runner.cancel(task, attempt)

    async def join_channel(self, init_info: dict[str, Any]) -> None:
        with self._transferring():
            await self.engine.join_channel(init_info)

    async def update_weights(self, update: WeightUpdate) -> float:
        """Seconds that generation stood still. Running groups stay where they are (partial rollout)."""
        self.occupancy.set_paused(True)
        with self._transferring():
            pause_s = await self.engine.update_weights(update)
        self.occupancy.set_paused(False)
        return pause_s

    @contextmanager
    def _transferring(self) -> Iterator[None]:
        self.transfers += 1
        try:
            yield
        finally:
            self.transfers -= 1

    async def score_probe(self) -> tuple[int, list[float]]:
        """Log-probs of the text that weights are verified with, and the version that computed them."""
        return await self.engine.score(self.probe)

    async def ping(self, no_transfer: bool = False) -> None:
        """A sign of life. Raises EngineDead if the engine has none, or is still in a weight transfer and `no_transfer`:
        it has failed, and the other end is gone."""
        if no_transfer and self.transfers:
            raise EngineDead("the weight transfer that has failed still holds it")
        await self.engine.check()

    async def take_stats(self) -> tuple[dict[str, float], list[trace.Span]]:
        """Seconds busy, paused and idle, and tokens sampled, since the last call; and the spans."""
        tokens, self.tokens_generated = self.tokens_generated, 0
        return {**self.occupancy.take(), "tokens": tokens}, trace.take()

    async def take_notices(self) -> list[relay.Notice]:
        """Warnings since the last call, of the engine's processes too."""
        return relay.take()

    async def close(self) -> None:
        for pool in self.rewards.values():
            pool.close()
        if self.teaching is not None:
            await self.teaching.close()
        if self.environment is not None:
            await self.environment.close()
        await self.engine.close()


def _expected(row: Mapping[str, Any]) -> dict[str, str]:
    """The answer that a row has for its reward, under one of the names that data sets use for it."""
    gold = row.get("reward_model")
    named = {**row, **gold} if isinstance(gold, Mapping) else row
    found = next((named[name] for name in _ANSWERS if named.get(name) is not None), None)
    return {} if found is None else {"expected": str(found)[:_MOST_EXPECTED_CHARS]}
