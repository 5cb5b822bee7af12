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
            own = batch.segments == segment
            gaps = (logprobs.detach()[own] - batch.behaviour_logprobs[own]).abs().tolist()
            of_token = dict(zip(trained_places(sample).tolist(), map(_plain, gaps), strict=True))
            tokens = range(sample.trajectory.prompt_length, len(sample.trajectory.tokens))
            # Turns may pass one by one, and each may pass again.
            known = self.found.get(place, [None] * len(tokens))
            pairs = zip(known, tokens, strict=True)
            self.found[place] = [of_token.get(token) if gap is None else gap for gap, token in pairs]


def _plain(gap: float) -> float | None:
    return round(gap, _DIGITS) if math.isfinite(gap) else None
