"""How far trainer and engine are apart on single tokens: |log-prob of the trainer - log-prob of the engine|, of a few
trajectories that people will look at, as they pass the model for the first time in the step that trains them.

No pass is made for it. A trajectory that does not pass (no advantage, replaced by a past one) has no gaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from asyncrl.rollout.trajectory import Group, Trajectory
from asyncrl.trainer.backend import NUM_SAMPLED, TokenGaps
from asyncrl.trainer.packing import PackedBatch, trained_places

_DIGITS = 4


def sampled(groups: Sequence[Group]) -> list[Trajectory]:
    return [group.trajectories[0] for group in groups[:NUM_SAMPLED]]


class Gaps:
    """Of these trajectories; `found` has them by their place in the list."""

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        self._places = {id(trajectory): place for place, trajectory in enumerate(trajectories)}
        self.found: dict[int, TokenGaps] = {}

    def look(self, batch: PackedBatch, logprobs: torch.Tensor) -> None:
        """logprobs: of the trained tokens, float32 [N]."""
        for segment, sample in enumerate(batch.samples):
            place = self._places.get(id(sample.trajectory))
            if place is None:
                continue
            first = sample.trajectory.prompt_length
            tokens = [token - first for token in trained_places(sample).tolist()]
            known = self.found.setdefault(place, [None] * (len(sample.trajectory.tokens) - first))
            # Turns may pass one by one, and each again: then there is nothing to fetch from the device.
            if all(known[token] is not None for token in tokens):
                continue
            own = batch.segments == segment
            gaps = (logprobs.detach()[own] - batch.behaviour_logprobs[own]).abs().tolist()
            for token, gap in zip(tokens, gaps, strict=True):
                known[token] = _plain(gap) if known[token] is None else known[token]


def _plain(gap: float) -> float | None:
    return round(gap, _DIGITS) if math.isfinite(gap) else None
