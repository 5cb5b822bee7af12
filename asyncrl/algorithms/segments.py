"""Sums and means over trajectories of packed tokens.

segments: int64 [N], the trajectory of each token, non-decreasing, 0..M-1; num_segments: M. A segment may be empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asyncrl.algorithms.base import kept, promote


def segment_sum(x: Tensor, segments: Tensor, num_segments: int) -> Tensor:
    """Sum of x [N] over each segment, [M]; 0 for an empty one. Differentiable in x."""
    x = promote(x)
    return torch.zeros(num_segments, dtype=x.dtype, device=x.device).index_add(0, segments, x)


def segment_mean(x: Tensor, segments: Tensor, num_segments: int, mask: Tensor | None = None) -> Tensor:
    """Mean of x [N] over the tokens of each segment (those of the mask, bool [N]), [M]; 0 where there are none."""
    if mask is None:
        mask = torch.ones_like(segments, dtype=torch.bool)
    (x,) = kept(mask, x)
    return segment_sum(x, segments, num_segments) / segment_sum(mask, segments, num_segments).clamp(min=1)
