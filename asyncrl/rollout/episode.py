"""From one task to one group: n rollouts of an environment, scored, as trajectories.

Waits for: the engine's tokens and the environment, then the reward processes. Other groups go on meanwhile; there is no
barrier.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import Any

from asyncrl.data.prompts import BadPrompt
from asyncrl.data.tasks import tokenize
from asyncrl.envs.environment import Ask, Environment, Episode, Policy, ToolUse
from asyncrl.observe import trace
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.score import RewardRequest, Score, TrainerState, failed
from asyncrl.rollout.engine import Engine
from asyncrl.rollout.occupancy import Occupancy
from asyncrl.rollout.placed import PlacedRewards
from asyncrl.rollout.policy import EnginePolicy, GroupAborted, SamplingLimits
from asyncrl.rollout.teaching import Taught, Teaching
from asyncrl.rollout.texts import Texts
from asyncrl.rollout.trajectory import Group, Trajectory
from asyncrl.task import Task

logger = logging.getLogger(__name__)
_Rollout = tuple[EnginePolicy, Episode]
_NO_REWARD = "the environment returned no reward"


@dataclass(frozen=True)
class RolloutSettings:
    """The part of the recipe that a group needs."""

    group_size: int
    max_prompt_tokens: int
    limits: SamplingLimits
    filter_equal_rewards: bool = False
    skip_special_tokens: bool = True
    """In the texts that the reward gets."""
    max_steps: int = 0
    redundant_rollouts: int = 0
    """Beyond `group_size`; the first that end without failing are kept."""
    unscored: bool = False
    """Nothing judges: every reward is 0, as a teacher is all there is to learn from."""
    prefix: str = ""
    """Of the names of its rollouts, which tells them from those of others on the same engine."""


@dataclass(frozen=True)
class Finished:
    """A group that ran to its end."""

    group: Group
    texts: list[str]
    """Of each rollout's last completion."""
    replaced: list[str]
    """Why rollouts failed that redundant ones stood in for."""
    tools: ToolUse
    """By those that are kept."""
    taught: list[str | None] = field(default_factory=list)
    """Of each trajectory that a teacher was asked of, why it has said nothing, or None."""


class SingleTurn:
    """The environment of a recipe that names none: one completion of the prompt, for the reward function to judge."""

    async def rollout(self, task: Task, prompt: list[int], policy: Policy, name: str) -> Episode:
        return Episode(None, (await policy.generate(Ask(prompt))).finish_reason)


class GroupRunner:
    """Runs groups on one engine; any number at a time."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        rewards: RewardPool | PlacedRewards | None,
        settings: RolloutSettings,
        occupancy: Occupancy,
        environment: Environment | None = None,
        teaching: Teaching | None = None,
    ) -> None:
        self.engine, self._teaching = engine, teaching
        self.environment = environment or SingleTurn()
        self._running: dict[tuple[int, int], list[tuple[EnginePolicy, asyncio.Task[Episode]]]] = {}
        self.occupancy = occupancy
        self.tokenizer = tokenizer
        self.texts = Texts(tokenizer)
        self.rewards = rewards
        self.settings = settings
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        self._marks = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} - ends
        """Special tokens that may mean something to a reward."""

    async def run(self, task: Task, attempt: int) -> Finished:
        """Raises BadPrompt or GroupAborted."""
        with trace.free_lane("group") as lane:
            return await self._run(task, attempt, lane)

    async def _run(self, task: Task, attempt: int, lane: str) -> Finished:
        prompt_tokens = tokenize(task, self.tokenizer)
        if len(prompt_tokens) > self.settings.max_prompt_tokens:
            raise BadPrompt("prompt_too_long", f"{task.where} has {len(prompt_tokens)} tokens")
        with trace.span("generate", lane):
            rollouts = await self._roll_out(task, prompt_tokens, attempt)
        kept, replaced = _kept(rollouts, self.settings.group_size)
        policies, episodes = [policy for policy, _ in kept], [episode for _, episode in kept]
        texts = await self.texts.beside(self._texts, [p.last.tokens if p.last else [] for p in policies])
        with trace.span("reward", lane), self.occupancy.scoring():
            scores = [
                replace(score, extras={**score.extras, **episode.rewards, **_by_source(task, score)})
                for score, episode in zip(await self._scores(task, policies, episodes, texts), episodes, strict=True)
            ]
        trajectories = [
            trajectory
            for policy, episode, score in zip(policies, episodes, scores, strict=True)
            for trajectory in policy.trajectories(
                prompt_tokens, score, episode.finish_reason, episode.rewards, episode.turn_rewards
            )
        ]
        with trace.span("teacher", lane):
            taught = await self._taught(task, tuple(trajectories))
        group, tools = Group(task.number, attempt, task.row_index, taught.trajectories, task.source), ToolUse()
        for episode in episodes:
            tools.add(episode.tools)
        return Finished(group, texts, replaced, tools, taught.errors)

    async def _taught(self, task: Task, trajectories: tuple[Trajectory, ...]) -> Taught:
        return await self._teaching(task, trajectories) if self._teaching else Taught(trajectories, [])

    async def _roll_out(self, task: Task, prompt: list[int], attempt: int) -> list[_Rollout]:
        """Those that have ended once enough have ended well, by member; the others are cancelled. Raises GroupAborted
        if the group was, else the first exception of a policy; when all have ended."""
        needed, limits = self.settings.group_size, self.settings.limits
        members = range(needed + self.settings.redundant_rollouts)
        policies = [
            EnginePolicy(self.engine, limits, task.number, attempt, member, self.settings.prefix) for member in members
        ]
        running = [
            asyncio.create_task(self.environment.rollout(task, prompt, policy, policy.name)) for policy in policies
        ]
        self._running[task.number, attempt] = list(zip(policies, running, strict=True))
        try:
            spare = await _enough(running, needed)
            for rollout in spare:
                rollout.cancel()
            ended = await asyncio.gather(*running, return_exceptions=True)
        finally:
            del self._running[task.number, attempt]
            for rollout in running:  # if this was cancelled
                rollout.cancel()
        found = [(p, e) for p, e, task in zip(policies, ended, running, strict=True) if task not in spare]
        wrong = [error for _, error in found if isinstance(error, BaseException)]
        if any(isinstance(error, GroupAborted | asyncio.CancelledError) for error in wrong):
            raise GroupAborted
        if wrong:
            raise wrong[0]
        return [(policy, episode) for policy, episode in found if isinstance(episode, Episode)]

    async def cancel(self, task: int, attempt: int) -> None:
        """Ends a running group, whose `run` raises GroupAborted."""
        members = self._running.get((task, attempt), [])
        await self.engine.cancel([request for policy, _ in members for request in policy.running])
        for _, rollout in members:
            rollout.cancel()

    async def _scores(
        self, task: Task, policies: list[EnginePolicy], episodes: list[Episode], texts: list[str]
    ) -> list[Score]:
        """The environment's, or the reward function's of those that it has not judged."""
        scores = [episode.score for episode in episodes]
        asked = [i for i, score in enumerate(scores) if score is None]
        judged: list[Score] = []
        if asked and self.settings.unscored:
            judged = [Score(0.0)] * len(asked)
        elif asked and self.rewards is None:
            why = [episodes[i].why or _NO_REWARD for i in asked]
            judged = [failed(f"{reason}, and the recipe names no reward function") for reason in why]
        elif asked and self.rewards is not None:
            last = [policies[i].last for i in asked]
            request = RewardRequest(
                task.prompt,
                [texts[i] for i in asked],
                [c.tokens if c else [] for c in last],
                [episodes[i].finish_reason for i in asked],
                task.row,
                TrainerState(self.engine.version(), self.settings.max_steps, task.epoch),
                task.source,
            )
            judged = await self.rewards.score(request)
        of = dict(zip(asked, judged, strict=True))
        return [of[i] if score is None else score for i, score in enumerate(scores)]

    def _texts(self, completions: list[list[int]]) -> list[str]:
        skip = self.settings.skip_special_tokens
        if skip and (hidden := self._marks.intersection(token for tokens in completions for token in tokens)):
            self._marks = set()  # said once
            logger.warning(
                "completions have special tokens (%s) that the reward does not see; "
                "set rewards.skip_special_tokens=false if it should",
                self.texts.tokenizer.decode(sorted(hidden)),
            )
        return [self.texts.tokenizer.decode(tokens, skip_special_tokens=skip) for tokens in completions]


async def _enough(rollouts: list[asyncio.Task[Episode]], needed: int) -> set[asyncio.Task[Episode]]:
    """Waits until so many have ended well, or one in a way that is not its environment's, or all; returns those that
    still run."""
    running, good = set(rollouts), 0
    while running and good < needed:
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if any(rollout.cancelled() or rollout.exception() for rollout in done):
            await asyncio.wait(rollouts)
            return set()
        good += sum(not _has_failed(rollout.result()) for rollout in done)
    return running


def _by_source(task: Task, score: Score) -> dict[str, float]:
    """What makes the curve `reward/mean/SOURCE`."""
    return {f"mean/{task.source}": score.reward} if task.source and score.reward is not None else {}


def _has_failed(episode: Episode) -> bool:
    return episode.score is not None and episode.score.reward is None


def _kept(rollouts: list[_Rollout], number: int) -> tuple[list[_Rollout], list[str]]:
    """So many of them, those that failed only where there are no others; and the errors of those left out."""
    ranked = sorted(range(len(rollouts)), key=lambda place: _has_failed(rollouts[place][1]))
    kept = [rollouts[place] for place in sorted(ranked[:number])]
    left_out = [rollouts[place][1].score for place in ranked[number:]]
    return kept, [score.error for score in left_out if score is not None and score.error]
