"""Trajectories as one row of a prefix tree: without padding, prefixes once.

The model sees one row of T tokens (`tree.py`); linear layers see neither padding nor a shared token twice, and the
attention follows the tree (`attention.py`). Log-probs are computed only where a token is trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from asyncrl.rollout.trajectory import Trajectory
from asyncrl.trainer.attention import RowTree
from asyncrl.trainer.tree import prefix_tree


@dataclass(frozen=True)
class TrainSample:
    """One trajectory ready to train."""

    trajectory: Trajectory
    group: int
    """Number of its group in the batch."""
    reward: float
    """After all shaping."""
    advantage: float
    mask: np.ndarray
    """bool [T]: tokens whose loss counts in this step (the loss mask less the tokens that are too old)."""
    share: float = 1.0
    """Of the trained tokens of its rollout, which may have several trajectories."""
    source: str = ""
    """Name of its data source, where the recipe has several."""


@dataclass(frozen=True)
class PackedBatch:
    """M trajectories in one row of T tokens; N tokens of them are trained."""

    tokens: torch.Tensor
    """int64 [1, T]."""
    tree: RowTree
    predictors: torch.Tensor
    """int64 [N]: the token of the row whose output predicts trained token i (the one before it on its path)."""
    targets: torch.Tensor
    """int64 [N]: the trained tokens."""
    segments: torch.Tensor
    """int64 [N]: which trajectory a trained token belongs to, 0..M-1."""
    groups: torch.Tensor
    """int64 [M]: which group of the batch a trajectory belongs to."""
    rewards: torch.Tensor
    """float32 [M]."""
    shares: torch.Tensor
    """float32 [M]: of the trained tokens of its rollout."""
    behaviour_logprobs: torch.Tensor
    """float32 [N]."""
    versions: torch.Tensor
    """int64 [N]: policy version that sampled the token."""
    advantages: torch.Tensor
    """float32 [N]: each token that of its trajectory."""
    samples: tuple[TrainSample, ...]
    """The M trajectories."""
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    """Further values [N], which the learner and the objective work out: prox, ref_logprobs, values, keep, ..."""

    @property
    def num_trajectories(self) -> int:
        return len(self.rewards)


def trained_places(sample: TrainSample) -> np.ndarray:
    """int64: places of the trained tokens in the trajectory. Its first token is never trained."""
    return 1 + np.flatnonzero(sample.mask[1:])


def pack_text(tokens: np.ndarray, device: torch.device) -> PackedBatch:
    """One sequence, integers [T], whose tokens are all to be scored but the first."""
    none, mask = np.zeros(len(tokens), np.float32), np.arange(len(tokens)) > 0
    text = Trajectory(tokens.astype(np.int32), none.astype(np.int32), none, mask, 0.0, "stop")
    return pack([TrainSample(text, 0, 0.0, 0.0, mask)], device)


def pack(samples: list[TrainSample], device: torch.device) -> PackedBatch:
    """Lay the samples out and move them to `device`."""
    tree = prefix_tree([sample.trajectory.tokens for sample in samples])
    trained = [trained_places(sample) for sample in samples]
    segments = np.repeat(np.arange(len(samples)), [len(t) for t in trained])

    def tensor(array: np.ndarray, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.tensor(array, dtype=dtype, device=device)

    def of_trained(values: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate([v[t] for v, t in zip(values, trained, strict=True)])

    return PackedBatch(
        tokens=tensor(tree.tokens)[None],
        tree=RowTree(tensor(tree.depths), tensor(tree.ends), tree.nodes),
        predictors=tensor(np.concatenate([path[t - 1] for path, t in zip(tree.paths, trained, strict=True)])),
        targets=tensor(of_trained(s.trajectory.tokens for s in samples)),
        segments=tensor(segments),
        groups=tensor(np.array([s.group for s in samples])),
        rewards=tensor(np.array([s.reward for s in samples]), torch.float32),
        shares=tensor(np.array([s.share for s in samples]), torch.float32),
        behaviour_logprobs=tensor(of_trained(s.trajectory.logprobs for s in samples), torch.float32),
        versions=tensor(of_trained(s.trajectory.versions for s in samples)),
        advantages=tensor(np.array([s.advantage for s in samples])[segments], torch.float32),
        samples=tuple(samples),
    )
