"""Trajectories laid end to end: micro-batches under a token budget, without padding.

The model sees one row of T tokens; positions restart at each trajectory and the packed attention
(`attention.py`) keeps trajectories apart. Log-probs are computed only where a token is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from asyncrl.rollout.trajectory import Trajectory


@dataclass(frozen=True)
class TrainSample:
    """One trajectory ready to train."""

    trajectory: Trajectory
    advantage: float
    mask: np.ndarray
    """bool [T]: tokens whose loss counts in this step (the loss mask less the tokens that are too old)."""


@dataclass(frozen=True)
class PackedBatch:
    """M trajectories in one row; N tokens of them are trained."""

    tokens: torch.Tensor
    """int64 [1, T]."""
    positions: torch.Tensor
    """int64 [1, T], from 0 in each trajectory."""
    starts: torch.Tensor
    """int32 [M + 1]: trajectory m is tokens[starts[m]:starts[m + 1]]."""
    max_length: int
    """Longest trajectory, in tokens."""
    predictors: torch.Tensor
    """int64 [N]: index of the position whose output predicts trained token i (the one before it)."""
    targets: torch.Tensor
    """int64 [N]: the trained tokens."""
    segments: torch.Tensor
    """int64 [N]: which trajectory a trained token belongs to, 0..M-1."""
    behaviour_logprobs: torch.Tensor
    """float32 [N]."""
    advantages: torch.Tensor
    """float32 [N]."""
    num_segments: int
    """M."""


def split(samples: list[TrainSample], tokens_per_microbatch: int) -> list[list[TrainSample]]:
    """Longest first into the first micro-batch that still has room; equal lengths end up side by side.

    Raises ValueError if one trajectory alone is over the budget.
    """
    microbatches: list[list[TrainSample]] = []
    room: list[int] = []
    for sample in sorted(samples, key=lambda s: -len(s.trajectory.tokens)):
        length = len(sample.trajectory.tokens)
        if length > tokens_per_microbatch:
            raise ValueError(
                f"a trajectory of {length} tokens is over trainer.tokens_per_microbatch ({tokens_per_microbatch})"
            )
        fits = next((i for i, free in enumerate(room) if free >= length), None)
        if fits is None:
            microbatches.append([])
            room.append(tokens_per_microbatch)
            fits = len(room) - 1
        microbatches[fits].append(sample)
        room[fits] -= length
    return microbatches


def pack(samples: list[TrainSample], device: torch.device) -> PackedBatch:
    """Lay the samples end to end and move them to `device`. Token 0 of a trajectory is never trained."""
    lengths = [len(s.trajectory.tokens) for s in samples]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    masks = []
    for sample in samples:
        mask = sample.mask.copy()
        mask[0] = False
        masks.append(mask)
    trained = np.flatnonzero(np.concatenate(masks))
    tokens = np.concatenate([s.trajectory.tokens for s in samples]).astype(np.int64)
    behaviour = np.concatenate([s.trajectory.logprobs for s in samples])
    segment_of = np.repeat(np.arange(len(samples)), lengths)
    advantage_of = np.array([s.advantage for s in samples], dtype=np.float32)

    def tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(array, dtype=dtype, device=device)

    return PackedBatch(
        tokens=tensor(tokens, torch.int64)[None],
        positions=tensor(np.concatenate([np.arange(n) for n in lengths]), torch.int64)[None],
        starts=tensor(starts, torch.int32),
        max_length=max(lengths),
        predictors=tensor(trained - 1, torch.int64),
        targets=tensor(tokens[trained], torch.int64),
        segments=tensor(segment_of[trained], torch.int64),
        behaviour_logprobs=tensor(behaviour[trained], torch.float32),
        advantages=tensor(advantage_of[segment_of[trained]], torch.float32),
        num_segments=len(samples),
    )
