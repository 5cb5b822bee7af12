"""Groups of a row that has the answers: nothing is sampled, scored or waited for, and all else is as in any run.

A demonstration is a group of one, whose reward of 1 means nothing; a chosen and a rejected answer are a pair of rewards
1 and 0. Their tokens carry the version that was live when the row was drawn, so that the staleness bound holds as for
sampled ones.
"""

from __future__ import annotations

import numpy as np

from asyncrl.data.demonstrations import Rendered, Renderer
from asyncrl.envs.environment import ToolUse
from asyncrl.observe import trace
from asyncrl.rollout.engine import Completion, Engine, EngineConfig, SamplingParams
from asyncrl.rollout.episode import Finished
from asyncrl.rollout.texts import Texts
from asyncrl.rollout.trajectory import Group, Trajectory
from asyncrl.task import Task
from asyncrl.weights.update import WeightUpdate


class NoEngine:
    """What stands in the place of an engine: it knows the version."""

    provides_logprobs = False
    holds_weights = False

    def __init__(self, config: EngineConfig) -> None:
        self._version = 0

    async def start(self) -> None:
        """There is nothing to load."""

    async def generate(self, tokens: list[int], params: SamplingParams, *, request_id: str) -> Completion:
        raise RuntimeError("rollout.engine data samples nothing")

    async def cancel(self, request_ids: list[str]) -> None:
        """Nothing runs."""

    async def join_channel(self, init_info: dict[str, object]) -> None:
        """Nothing to join."""

    async def update_weights(self, update: WeightUpdate) -> float:
        self._version = update.version
        return 0.0

    async def score(self, tokens: list[int]) -> tuple[int, list[float]]:
        raise RuntimeError("rollout.engine data has no model to score with")

    async def check(self) -> None:
        """There is nothing that could have ended."""

    def version(self) -> int:
        return self._version

    async def close(self) -> None:
        """Nothing is open."""


class RowRunner:
    """Makes the groups of rows, as `episode.GroupRunner` runs those of prompts."""

    def __init__(self, engine: Engine, tokenizer: object, max_tokens: int) -> None:
        self._engine, self._max_tokens = engine, max_tokens
        self.texts = Texts(tokenizer)
        self._renderer = Renderer(self.texts.tokenizer)

    async def run(self, task: Task, attempt: int) -> Finished:
        """Raises BadPrompt."""
        with trace.free_lane("group") as lane, trace.span("render", lane):
            version = self._engine.version()
            answers = await self.texts.beside(self._renderer.render, task, self._max_tokens)
            trajectories = [
                trajectory(sequence, version, member, reward=1.0 - member)
                for member, sequences in enumerate(answers)
                for sequence in sequences
            ]
            texts = [await self.texts.text(_last(sequences[-1])) for sequences in answers]
        return Finished(Group(task.number, attempt, task.row_index, tuple(trajectories)), texts, [], ToolUse())

    async def cancel(self, task: int, attempt: int) -> None:
        """It is done before anyone can ask."""


def trajectory(sequence: Rendered, version: int, member: int, reward: float) -> Trajectory:
    """A rendered row as one that was sampled: what is to be learnt has the version, and no log-prob."""
    learnt = np.zeros(len(sequence.tokens), bool)
    for start, end in sequence.learnt:
        learnt[start:end] = True
    return Trajectory(
        tokens=np.array(sequence.tokens, np.int32),
        versions=np.where(learnt, version, -1).astype(np.int32),
        logprobs=np.where(learnt, np.nan, 0.0).astype(np.float32),
        loss_mask=learnt,
        reward=reward,
        finish_reason="stop",
        member=member,
    )


def _last(sequence: Rendered) -> list[int]:
    start, end = sequence.learnt[-1]
    return sequence.tokens[start:end]
