"""What the driver learns of a group: some hundred bytes; the trajectories themselves go to the buffer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from asyncrl.data.prompts import BadPrompt
from asyncrl.envs.environment import ToolUse
from asyncrl.rollout.trajectory import Group, Trajectory


@dataclass(frozen=True)
class GroupSummary:
    """One group, in figures."""

    task: int
    attempt: int
    outcome: str
    """`finished`, `filtered`, `failed` or `aborted`."""
    reason: str = ""
    detail: str = ""
    """More about the reason, for people."""
    oldest_version: int = -1
    newest_version: int = -1
    num_tokens: int = 0
    """Sampled tokens."""
    num_mixed: int = 0
    """Rollouts whose tokens carry more than one version."""
    num_truncated: int = 0
    """Rollouts that were cut off at the longest length."""
    num_turns: int = 0
    """Completions of all rollouts."""
    num_sequences: int = 0
    """Trajectories of all rollouts."""
    in_flight: float = 0.0
    """Mean over rollouts of newest - oldest version: how much they aged while running."""
    rewards: list[float | None] = field(default_factory=list)
    extras: list[dict[str, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    longest: int = 0
    """Tokens of the longest trajectory, what was read included."""
    tools: ToolUse = field(default_factory=ToolUse)
    replaced: list[str] = field(default_factory=list)
    """Errors of rollouts that redundant ones stood in for."""
    taught: list[str | None] = field(default_factory=list)
    """Of each trajectory that a teacher was asked of, why it has said nothing, or None."""
    sample: dict[str, Any] = field(default_factory=dict)
    """One trajectory in words, for people: prompt, token strings, their versions, reward."""


def filtered(task: int, attempt: int, fault: BadPrompt) -> GroupSummary:
    """The summary of a group that was not begun, as its row has no usable prompt."""
    return GroupSummary(task, attempt, "filtered", fault.reason, str(fault))


def summarise(group: Group, filter_equal_rewards: bool = False) -> GroupSummary:
    """The summary of a group that ran to its end; a group in which every reward failed has failed. One whose rewards
    are all equal teaches nothing and may be filtered (DAPO, arXiv:2503.14476)."""
    members = [[group.trajectories[place] for place in places] for places in group.members]
    firsts = group.firsts
    versions = [np.concatenate([t.versions for t in member]) for member in members]
    sampled = [v[v >= 0] for v in versions]
    spans = [int(v.max() - v.min()) if len(v) else 0 for v in sampled]
    oldest, newest = group.version_range
    outcome, reason = "finished", ""
    if oldest < 0:
        scored = any(t.reward is not None for t in firsts)
        outcome, reason = "failed", "no sampled token that could be trained" if scored else "reward"
    if filter_equal_rewards and oldest >= 0 and _teaches_nothing(group):
        outcome, reason = "filtered", "equal_rewards"
    return GroupSummary(
        group.task,
        group.attempt,
        outcome=outcome,
        reason=reason,
        oldest_version=oldest,
        newest_version=newest,
        num_tokens=sum(len(v) for v in sampled),
        num_mixed=sum(s > 0 for s in spans),
        num_truncated=sum(t.finish_reason == "length" for t in firsts),
        num_turns=sum(_turns(t) for t in group.trajectories),
        num_sequences=len(group.trajectories),
        longest=max(len(t.tokens) for t in group.trajectories),
        in_flight=sum(spans) / len(spans),
        rewards=[t.reward for t in firsts],
        extras=[t.extras for t in firsts],
        errors=[t.error for t in firsts if t.error],
    )


def _teaches_nothing(group: Group) -> bool:
    """No agent has two rewards to compare."""
    agents = {t.agent for t in group.trajectories}
    return all(len({t.reward for t in group.trajectories if t.agent == agent} - {None}) < 2 for agent in agents)


def _turns(trajectory: Trajectory) -> int:
    """Runs of sampled tokens."""
    return int((np.diff((trajectory.versions >= 0).astype(np.int8), prepend=0) == 1).sum())
