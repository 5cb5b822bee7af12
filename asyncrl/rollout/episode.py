"""From one task to one encoded group: sample n completions, score them, assemble the trajectories.

Waits for: the engine's tokens, then the reward processes. Other groups go on meanwhile; there is no barrier.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from asyncrl.data.prompts import BadPrompt
from asyncrl.data.tasks import Task, tokenize
from asyncrl.observe import trace
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.score import RewardRequest, Score, TrainerState
from asyncrl.rollout.engine import Completion, Engine, SamplingParams
from asyncrl.rollout.occupancy import Occupancy
from asyncrl.rollout.trajectory import Group, Trajectory

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class RolloutSettings:
    """The part of the recipe that an episode needs."""

    group_size: int
    max_new_tokens: int
    max_prompt_tokens: int
    temperature: float
    seed: int
    filter_equal_rewards: bool = False
    skip_special_tokens: bool = True
    """In the texts that the reward gets."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_steps: int = 0


class GroupAborted(Exception):
    """The group was cancelled; whatever it had is thrown away."""


class GroupRunner:
    """Runs groups on one engine; any number at a time."""

    def __init__(
        self, engine: Engine, tokenizer: Any, rewards: RewardPool, settings: RolloutSettings, occupancy: Occupancy
    ) -> None:
        self.engine = engine
        self.occupancy = occupancy
        self.tokenizer = tokenizer
        # Long texts must not hold up the engine's event loop. No tokenizer may be used by two threads.
        self._decoder, self._thread = copy.deepcopy(tokenizer), ThreadPoolExecutor(1, "text")
        self.rewards = rewards
        self.settings = settings
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        self._marks = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} - ends
        """Special tokens that may mean something to a reward."""

    async def run(self, task: Task, attempt: int) -> tuple[Group, list[str]]:
        """The finished group and the text of its completions. Raises BadPrompt or GroupAborted."""
        with trace.free_lane("group") as lane:
            return await self._run(task, attempt, lane)

    async def _run(self, task: Task, attempt: int, lane: str) -> tuple[Group, list[str]]:
        prompt_tokens = tokenize(task, self.tokenizer)
        if len(prompt_tokens) > self.settings.max_prompt_tokens:
            raise BadPrompt("prompt_too_long", f"{task.where} has {len(prompt_tokens)} tokens")
        requests = request_ids(task.number, attempt, self.settings.group_size)
        with trace.span("generate", lane):
            completions = await asyncio.gather(
                *(
                    self.engine.generate(prompt_tokens, self._params(task.number, i), request_id=request)
                    for i, request in enumerate(requests)
                )
            )
        if any(c.finish_reason == "abort" for c in completions):
            raise GroupAborted
        texts = await self._beside(self._texts, completions)
        with trace.span("reward", lane), self.occupancy.scoring():
            request = RewardRequest(
                task.prompt,
                texts,
                [c.tokens for c in completions],
                [c.finish_reason for c in completions],
                task.row,
                TrainerState(self.engine.version(), self.settings.max_steps, task.epoch),
            )
            scores = await self.rewards.score(request)
        trajectories = tuple(trajectory(prompt_tokens, c, s) for c, s in zip(completions, scores, strict=True))
        return Group(task.number, attempt, task.row_index, trajectories), texts

    async def words(self, tokens: list[int]) -> list[str]:
        """The text of each token."""
        return await self._beside(lambda: [self._decoder.decode([token]) for token in tokens])

    async def _beside(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _texts(self, completions: list[Completion]) -> list[str]:
        skip = self.settings.skip_special_tokens
        if skip and (hidden := self._marks.intersection(token for c in completions for token in c.tokens)):
            self._marks = set()  # said once
            logger.warning(
                "completions have special tokens (%s) that the reward does not see; "
                "set rewards.skip_special_tokens=false if it should",
                self._decoder.decode(sorted(hidden)),
            )
        return [self._decoder.decode(c.tokens, skip_special_tokens=skip) for c in completions]

    def _params(self, task: int, member: int) -> SamplingParams:
        # The same rollout for the same task and member, whoever samples it and however often it is started.
        seed = int(np.random.SeedSequence([self.settings.seed, task, member]).generate_state(1)[0])
        s = self.settings
        return SamplingParams(s.max_new_tokens, s.temperature, seed, s.stop, s.stop_token_ids)


def request_ids(task: int, attempt: int, group_size: int) -> list[str]:
    """Engine request ids of a group's members."""
    return [f"{task}.{attempt}.{i}" for i in range(group_size)]


def trajectory(prompt_tokens: list[int], completion: Completion, score: Score) -> Trajectory:
    """Prompt and completion as arrays; the sampled tokens are the trained ones unless the reward failed (I7)."""
    num_prompt, num_tokens = len(prompt_tokens), len(completion.tokens)
    versions = np.full(num_prompt + num_tokens, -1, np.int32)
    for span in completion.spans:
        versions[num_prompt + span.start : num_prompt + span.end] = span.version
    if num_tokens and versions[num_prompt:].min() < 0:
        raise RuntimeError(f"the engine stamped no version on some of {num_tokens} tokens: {completion.spans}")
    logprobs = np.zeros(num_prompt + num_tokens, np.float32)
    logprobs[num_prompt:] = np.nan if completion.logprobs is None else completion.logprobs
    return Trajectory(
        tokens=np.array(prompt_tokens + completion.tokens, np.int32),
        versions=versions,
        logprobs=logprobs,
        loss_mask=(versions >= 0) & (score.reward is not None),
        reward=score.reward,
        finish_reason=completion.finish_reason,
        extras=score.extras,
        error=score.error,
        notes=score.notes,
    )
