"""Past trajectories of each task, some of which are trained again (TBA, arXiv:2503.18929).

A batch brings the new trajectories of its tasks. Each of them gives way, with probability `share`, to a past one of
the same task, drawn with weights exp(reward). What the trainer holds here follows from its batches alone, and is
part of its checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from asyncrl.rollout.trajectory import Group, Trajectory, decode, encode

_ARRAYS = ("tokens", "versions", "logprobs", "loss_mask", "teacher_logprobs", "teacher_prompt")
_FRAMES, _SIZES = "replay.frames", "replay.sizes"


class Replay:
    """At most `capacity` trajectories of a data row; of two with the same tokens only the newer."""

    def __init__(self, share: float, capacity: int, seed: int) -> None:
        self.share, self.capacity, self.seed = share, capacity, seed
        self._rows: dict[int, dict[bytes, Trajectory]] = {}
        """Of each row by their tokens, oldest first."""

    def mix(self, groups: list[Group], step: int) -> tuple[list[Group], list[list[bool]]]:
        """The groups with past members among the new ones, and which those are. The same for the same batches."""
        mixed, replayed = [], []
        for number, group in enumerate(groups):
            rng = np.random.default_rng([self.seed, step, number])
            past = list(self._rows.get(group.row, {}).values())
            chosen = [bool(past) and bool(rng.random() < self.share) for _ in group.trajectories]
            members = [self._draw(past, rng) if c else t for c, t in zip(chosen, group.trajectories, strict=True)]
            mixed.append(replace(group, trajectories=tuple(members)))
            replayed.append(chosen)
        for group in groups:
            self._add(group)
        return mixed, replayed

    def _draw(self, past: list[Trajectory], rng: np.random.Generator) -> Trajectory:
        rewards = np.array([t.reward for t in past], dtype=np.float64)
        weights = np.exp(rewards - rewards.max())
        return past[int(rng.choice(len(past), p=weights / weights.sum()))]

    def _add(self, group: Group) -> None:
        row = self._rows.setdefault(group.row, {})
        for trajectory in group.trajectories:
            if trajectory.reward is None:
                continue
            # Copies: the arrays are views of the frame of the whole group.
            arrays = {name: getattr(trajectory, name) for name in _ARRAYS}
            own = replace(trajectory, **{name: found.copy() for name, found in arrays.items() if found is not None})
            row.pop(own.tokens.tobytes(), None)
            row[own.tokens.tobytes()] = own
        while len(row) > self.capacity:
            del row[next(iter(row))]

    def state(self) -> dict[str, torch.Tensor]:
        """All of it, as bytes."""
        frames = [encode(Group(0, 0, row, tuple(past.values()))) for row, past in self._rows.items() if past]
        if not frames:
            return {}
        sizes = torch.tensor([len(frame) for frame in frames])
        return {_FRAMES: torch.frombuffer(bytearray(b"".join(frames)), dtype=torch.uint8), _SIZES: sizes}

    def restore(self, tensors: Mapping[str, Any]) -> None:
        """Inverse of `state`."""
        self._rows.clear()
        if _SIZES not in tensors:
            return
        data, end = tensors[_FRAMES].numpy().tobytes(), 0
        for size in tensors[_SIZES].tolist():
            group = decode(data[end : end + size])
            end += size
            self._rows[group.row] = {t.tokens.tobytes(): t for t in group.trajectories}
