"""What a trajectory takes to the trainer from its teacher: the log-probs that a server gives, or the prompt with a
hint that the trainer's own teacher reads. Both travel in the frame, so a replay asks nobody and renders nothing.

Waits for: the teacher's server, `timeout_s` for each trajectory. Unblocked by: the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from asyncrl.data.hints import hinted_tokens
from asyncrl.data.prompts import BadPrompt
from asyncrl.recipe.teacher import TeacherRecipe, teacher_of
from asyncrl.rollout.endpoint import Endpoint, NoAnswer
from asyncrl.rollout.trajectory import Trajectory
from asyncrl.task import Task


@dataclass(frozen=True)
class Taught:
    """Trajectories with what they take along, and why some have nothing, in their order."""

    trajectories: tuple[Trajectory, ...]
    errors: list[str | None]
    """None: nothing has failed."""


class Teaching:
    """The teachers of a recipe. `contexts`: positions of each that the trainer loads, None if not known. `alone`: there
    is nothing else to learn from."""

    def __init__(
        self, teachers: Sequence[TeacherRecipe], contexts: Sequence[int | None], alone: bool, tokenizer: Any
    ) -> None:
        self._teachers, self._contexts, self._alone, self._tokenizer = list(teachers), contexts, alone, tokenizer
        self._endpoints = [Endpoint(teacher) if teacher.url else None for teacher in teachers]

    async def __call__(self, task: Task, trajectories: tuple[Trajectory, ...]) -> Taught:
        """A trajectory whose teacher has failed learns from its reward, or, if that is none, is not trained (I7)."""
        place = teacher_of(self._teachers, task.source)
        if place is None or not (self._teachers[place].url or self._teachers[place].hint):
            return Taught(trajectories, [])
        found = await asyncio.gather(*(self._one(task, place, t) for t in trajectories))
        errors = [one if isinstance(one, str) else None for one in found]
        pairs = zip(trajectories, found, strict=True)
        return Taught(tuple(self._without(t, one) if isinstance(one, str) else one for t, one in pairs), errors)

    def _without(self, trajectory: Trajectory, error: str) -> Trajectory:
        if not self._alone:
            return trajectory
        return replace(trajectory, reward=None, error=error, loss_mask=np.zeros_like(trajectory.loss_mask))

    async def _one(self, task: Task, place: int, trajectory: Trajectory) -> Trajectory | str:
        teacher, endpoint = self._teachers[place], self._endpoints[place]
        if not trajectory.loss_mask.any():
            return trajectory
        try:
            own = trajectory.tokens[: trajectory.prompt_length]
            prompt = own if teacher.hint is None else hinted_tokens(task, teacher.hint, self._tokenizer)
            read = np.concatenate([np.array(prompt, np.int32), trajectory.tokens[len(own) :]])
            if endpoint is None:
                if (context := self._contexts[place]) is not None and len(read) > context:
                    return (
                        f"the teacher has {context} positions, and hint, prompt and completion have {len(read)} tokens"
                    )
                return replace(trajectory, teacher_prompt=read[: len(prompt)])
            said = await endpoint.logprobs(read.tolist())
        except (BadPrompt, NoAnswer) as error:
            return str(error)
        logprobs = np.concatenate([np.full(len(own), np.nan, np.float32), said[len(prompt) :]])
        return replace(trajectory, teacher_logprobs=np.where(trajectory.versions >= 0, logprobs, np.float32(np.nan)))

    async def close(self) -> None:
        for endpoint in filter(None, self._endpoints):
            await endpoint.close()
