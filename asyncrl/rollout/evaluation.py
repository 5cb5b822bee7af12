"""One task of an evaluation, on a generator: its rollouts are scored, and neither stored nor trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from asyncrl.rollout.episode import Finished, RolloutSettings
from asyncrl.task import Task, asked


@dataclass(frozen=True)
class EvalSettings:
    """The part of a recipe that a generator needs for an evaluation."""

    name: str
    rollout: RolloutSettings


@dataclass(frozen=True)
class TaskScores:
    """What the n rollouts of a task came to."""

    row: int
    prompt: str
    completions: list[str]
    rewards: list[float | None]
    """None of a rollout that failed: it is no zero (I7)."""
    extras: list[dict[str, float]]
    errors: list[str] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    """Sampled by each rollout."""
    truncated: list[bool] = field(default_factory=list)
    """Whether it was cut off at the longest length."""
    versions: dict[int, int] = field(default_factory=dict)
    """Sampled tokens by the version that sampled them."""

    @classmethod
    def failed(cls, task: Task, number: int, error: str) -> TaskScores:
        """All of them, for one reason."""
        return cls(task.row_index, asked(task.prompt), [""] * number, [None] * number, [{}] * number, [error] * number)

    @classmethod
    def of(cls, task: Task, finished: Finished) -> TaskScores:
        group, firsts = finished.group, finished.group.firsts
        versions: Counter[int] = Counter()
        for trajectory in group.trajectories:
            versions.update(int(version) for version in trajectory.versions if version >= 0)
        return cls(
            row=task.row_index,
            prompt=asked(task.prompt),
            completions=finished.texts,
            rewards=[t.reward for t in firsts],
            extras=[t.extras for t in firsts],
            errors=[t.error for t in firsts if t.error],
            num_tokens=[
                sum(int((group.trajectories[p].versions >= 0).sum()) for p in places) for places in group.members
            ],
            truncated=[t.finish_reason == "length" for t in firsts],
            versions=dict(versions),
        )
