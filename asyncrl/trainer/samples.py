"""From the groups of a batch to the samples that are trained: which rollouts count, their advantages, their masks.

A rollout may have several trajectories (`Trajectory.member`). Its group compares rollouts: each has one reward, one
advantage, which all of its trajectories get, and one say in a mean over sequences, which they share by their tokens.
Of several agents (`Trajectory.agent`) each counts as a rollout of its own, compared with those of its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from asyncrl.rollout.trajectory import Group, Trajectory
from asyncrl.trainer.baseline import Baseline
from asyncrl.trainer.credit import Part, of_episodes, of_turns
from asyncrl.trainer.objective import Objective
from asyncrl.trainer.packing import TrainSample
from asyncrl.trainer.replay import Replay


@dataclass
class Chosen:
    """What a step trains."""

    samples: list[TrainSample] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)
    """Trained tokens by age, 0, 1, ... updates; replayed ones are not among them."""
    past_ages: list[int] = field(default_factory=list)
    """Age of each replayed trajectory's oldest token."""
    num_left_out: int = 0
    """Trajectories that are not trained because they were cut off."""


@dataclass(frozen=True)
class _Rollout:
    trajectories: list[Trajectory]
    replayed: list[bool]
    truncated: bool
    """Cut off, where such are not trained; then no mean over tokens or rollouts has it either."""

    @property
    def num_tokens(self) -> int:
        """Trained ones, of whatever age."""
        return sum(int(t.loss_mask.sum()) for t in self.trajectories)


@dataclass(frozen=True)
class _Compared:
    """The rollouts of one agent in a group that are compared."""

    number: int
    """Of the group in the batch."""
    group: Group
    rollouts: list[_Rollout]
    rewards: torch.Tensor
    """float32 [n], after all shaping."""


def choose(
    groups: list[Group],
    objective: Objective,
    replay: Replay,
    baseline: Baseline,
    step: int,
    min_version: int,
    *,
    mask_old: bool,
) -> Chosen:
    """Of the batch of step `step`. Tokens sampled before `min_version` are context only if `mask_old`, else they are a
    ValueError (I1)."""
    chosen = Chosen()
    ages = np.zeros(step - min_version + 1, dtype=np.int64)
    replayed = [[False] * len(group.trajectories) for group in groups]
    if replay.share:
        groups, replayed = replay.mix(groups, step)
    every = []
    for number, group, rollouts in _by_agent(groups, replayed, objective):
        chosen.num_left_out += sum(len(r.trajectories) for r in rollouts if r.truncated)
        # The reward of one that is cut off counts for the others', unless it could be picked for them.
        compared = [r for r in rollouts if _scored(r) and not (r.truncated and objective.picks_members)]
        if compared:
            every.append(_Compared(number, group, compared, _rewards(compared, objective)))
    agents = [c.rollouts[0].trajectories[0].agent for c in every]
    baselines = baseline.of_batch([(c.group.row, a, c.rewards) for c, a in zip(every, agents, strict=True)])
    given_to = of_turns if objective.recipe.credit == "turn" else of_episodes
    for c, value in zip(every, baselines, strict=True):
        parts = given_to([r.trajectories for r in c.rollouts], c.rewards, partial(objective.choose, baseline=value))
        for rollout, own in ((c.rollouts[i], own) for i, own in parts.items()):
            if rollout.truncated:
                continue
            masks = [
                _mask(trajectory, past, c.group.task, step, min_version, mask_old)
                for trajectory, past in zip(rollout.trajectories, rollout.replayed, strict=True)
            ]
            for trajectory, past, mask in zip(rollout.trajectories, rollout.replayed, masks, strict=True):
                if past:
                    chosen.past_ages.append(step - int(trajectory.versions[mask].min()))
                else:
                    ages += np.bincount(step - trajectory.versions[mask], minlength=len(ages))
            chosen.samples += _samples(rollout, masks, c.number, own, c.group.source)
    chosen.ages = ages.tolist()
    return chosen


def _rewards(rollouts: list[_Rollout], objective: Objective) -> torch.Tensor:
    lengths = torch.tensor([r.num_tokens for r in rollouts])
    given = torch.tensor([r.trajectories[0].reward for r in rollouts], dtype=torch.float32)
    return objective.shape(given, lengths)


def _by_agent(
    groups: list[Group], replayed: list[list[bool]], objective: Objective
) -> Iterator[tuple[int, Group, list[_Rollout]]]:
    """Number of the group, the group, and the rollouts of one agent: those that are compared."""
    for number, group in enumerate(groups):
        for agent in dict.fromkeys(t.agent for t in group.trajectories):
            yield number, group, list(_rollouts(group, replayed[number], objective, agent))


def _rollouts(group: Group, replayed: list[bool], objective: Objective, agent: str) -> Iterator[_Rollout]:
    for member in group.members:
        places = [place for place in member if group.trajectories[place].agent == agent]
        trajectories = [group.trajectories[place] for place in places]
        truncated = objective.recipe.mask_truncated and any(t.finish_reason == "length" for t in trajectories)
        if places:
            yield _Rollout(trajectories, [replayed[place] for place in places], truncated)


def _scored(rollout: _Rollout) -> bool:
    return rollout.trajectories[0].reward is not None and rollout.num_tokens > 0


def _mask(trajectory: Trajectory, replayed: bool, task: int, step: int, min_version: int, mask_old: bool) -> np.ndarray:
    """Tokens to train, bool [T]."""
    fresh: np.ndarray = trajectory.loss_mask & (trajectory.versions >= min_version)
    if replayed or fresh.sum() == trajectory.loss_mask.sum():
        return trajectory.loss_mask
    if not mask_old:
        oldest = int(trajectory.versions[trajectory.loss_mask].min())
        raise ValueError(f"task {task} has a token of version {oldest} in step {step}, which allows {min_version}")
    return fresh


def _samples(
    rollout: _Rollout, masks: list[np.ndarray], group: int, parts: list[Part], source: str
) -> Iterator[TrainSample]:
    """Its parts that have a token to train. Those of one trajectory are the same tokens, which pass the model once."""
    total = sum(int(mask.sum()) for mask in masks)
    for part in parts:
        mask, within = np.zeros_like(masks[part.place]), slice(part.start, part.end)
        mask[within] = masks[part.place][within]
        if mask.any():
            trajectory, share = rollout.trajectories[part.place], int(mask.sum()) / total
            yield TrainSample(trajectory, group, part.reward, part.advantage, mask, share, source)
