"""Which reward and advantage each part of a rollout gets: all of it those of the episode, or each turn its own.

Of turns the t-th of each rollout of a group are compared, by what was earned from there on: r_t + r_t+1 + ..., where
what the episode's reward has beyond its turns' counts for the last (turn-level credit, arXiv:2505.11821, without its
separate outcome advantage).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from asyncrl.rollout.trajectory import Trajectory

Choose = Callable[[torch.Tensor, Sequence[Mapping[str, float]]], tuple[list[int], torch.Tensor]]
"""`Objective.choose`: which of n rewards are trained, and their advantages."""


@dataclass(frozen=True)
class Part:
    """Tokens [start, end) of one of a rollout's trajectories."""

    place: int
    start: int
    end: int
    reward: float
    advantage: float


def of_episodes(
    rollouts: Sequence[Sequence[Trajectory]], rewards: torch.Tensor, choose: Choose
) -> dict[int, list[Part]]:
    """By number of the rollout, of those that are trained. rewards: float32 [n], after all shaping."""
    members, advantages = choose(rewards, [trajectories[0].extras for trajectories in rollouts])
    return {
        i: [Part(place, 0, len(t.tokens), float(rewards[i]), advantage) for place, t in enumerate(rollouts[i])]
        for i, advantage in zip(members, advantages.tolist(), strict=True)
    }


def of_turns(rollouts: Sequence[Sequence[Trajectory]], rewards: torch.Tensor, choose: Choose) -> dict[int, list[Part]]:
    """The same. A turn that no other rollout has one of the same number to compare with has the advantage 0."""
    turns = [_turns(trajectories) for trajectories in rollouts]
    to_go = [_to_go([earned for *_, earned in own], float(r)) for own, r in zip(turns, rewards, strict=True)]
    found: dict[int, list[Part]] = {i: [] for i in range(len(rollouts))}
    for number in range(max(map(len, turns))):
        members = [i for i, own in enumerate(turns) if number < len(own)]
        values = torch.tensor([to_go[i][number] for i in members], dtype=torch.float32)
        advantages = torch.zeros(1)
        if len(members) > 1:
            _, advantages = choose(values, [rollouts[i][0].extras for i in members])
        for i, value, advantage in zip(members, values.tolist(), advantages.tolist(), strict=True):
            place, start, end, _ = turns[i][number]
            found[i].append(Part(place, start, end, value, advantage))
    return found


def _to_go(earned: list[float], reward: float) -> list[float]:
    """What each turn and those behind it have earned; of all together the episode's reward."""
    earned[-1] += reward - sum(earned)
    return np.cumsum(earned[::-1])[::-1].tolist()


def _turns(trajectories: Sequence[Trajectory]) -> list[tuple[int, int, int, float]]:
    """(trajectory, first token, token after the last, reward) of each turn, in the order in which they ended."""
    found = []
    for place, trajectory in enumerate(trajectories):
        start = 0
        for number, end, earned in trajectory.turns or _unrewarded(trajectory):
            found.append((number, place, start, end, earned))
            start = end
    # Without numbers those of a trajectory follow those of the one before it.
    return [turn for _, *turn in sorted(found, key=lambda f: f[0] if trajectories[f[1]].turns else f[1])]


def _unrewarded(trajectory: Trajectory) -> list[tuple[int, int, float]]:
    """Runs of trained tokens."""
    ends = np.flatnonzero(np.diff(trajectory.loss_mask.astype(np.int8), append=0) == -1) + 1
    return [(number, int(end), 0.0) for number, end in enumerate(ends)]
