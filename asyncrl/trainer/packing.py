"""Trajectories laid end to end: micro-batches under a token budget, without padding, each prompt once.

The model sees one row of T tokens. Trajectories of one prompt share its tokens: they stand once in the row, and
every trajectory's *path* names the tokens it consists of. Positions restart at each prompt; the packed attention
(`attention.py`) follows the paths. Log-probs are computed only where a token is trained.

    row      p p p a a a b b c c c c        prompt p, completions a, b, c
    paths    p p p a a a · | p p p b b · · | p p p c c c c
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from asyncrl.rollout.trajectory import Trajectory


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


@dataclass(frozen=True)
class PackedBatch:
    """M trajectories in one row of T tokens; N tokens of them are trained."""

    tokens: torch.Tensor
    """int64 [1, T]."""
    positions: torch.Tensor
    """int64 [1, T], from 0 in each trajectory."""
    paths: torch.Tensor
    """int64 [M, L]: the row's tokens that each trajectory consists of, in order; 0 after its end."""
    slots: torch.Tensor
    """int64 [T]: where in the flattened paths the attention's output for each token of the row is read."""
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
    behaviour_logprobs: torch.Tensor
    """float32 [N]."""
    versions: torch.Tensor
    """int64 [N]: policy version that sampled the token."""
    advantages: torch.Tensor
    """float32 [N]: each token that of its trajectory."""
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    """Further values [N], which the learner and the objective work out: prox, ref_logprobs, values, keep, ..."""


def split(samples: list[TrainSample], tokens_per_microbatch: int) -> list[list[TrainSample]]:
    """Families of one prompt, longest first, each into the first micro-batch that still has room for it.

    A family that is over the budget alone is cut. Raises ValueError if one trajectory is.
    """
    microbatches: list[list[TrainSample]] = []
    room: list[int] = []
    for family in sorted(_families(samples, tokens_per_microbatch), key=lambda f: -_num_tokens(f)):
        size = _num_tokens(family)
        fits = next((i for i, free in enumerate(room) if free >= size), None)
        if fits is None:
            microbatches.append([])
            room.append(tokens_per_microbatch)
            fits = len(room) - 1
        microbatches[fits] += family
        room[fits] -= size
    return microbatches


def _families(samples: Iterable[TrainSample], budget: int) -> list[list[TrainSample]]:
    """Samples of one prompt side by side, in parts that fit the budget."""
    families: dict[bytes, list[list[TrainSample]]] = {}
    for sample in samples:
        length = len(sample.trajectory.tokens)
        if length > budget:
            raise ValueError(f"a trajectory of {length} tokens is over trainer.tokens_per_microbatch ({budget})")
        parts = families.setdefault(_prompt(sample), [[]])
        if _num_tokens([*parts[-1], sample]) > budget:
            parts.append([])
        parts[-1].append(sample)
    return [part for parts in families.values() for part in parts]


def _prompt(sample: TrainSample) -> bytes:
    return sample.trajectory.tokens[: sample.trajectory.prompt_length].tobytes()


def _num_tokens(family: list[TrainSample]) -> int:
    """Tokens in the row: the shared prompt once."""
    shared = family[0].trajectory.prompt_length
    return shared + sum(len(s.trajectory.tokens) - shared for s in family)


def pack(samples: list[TrainSample], device: torch.device) -> PackedBatch:
    """Lay the samples out and move them to `device`. The first token of a trajectory is never trained."""
    prompt_at: dict[bytes, int] = {}
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    paths: list[np.ndarray] = []
    end = 0
    for sample in samples:
        ids, shared = sample.trajectory.tokens, sample.trajectory.prompt_length
        new_from = 0
        if (key := _prompt(sample)) in prompt_at:
            new_from = shared
        else:
            prompt_at[key] = end
        tokens.append(ids[new_from:])
        positions.append(np.arange(new_from, len(ids)))
        own = np.arange(end, end + len(ids) - new_from)
        paths.append(np.concatenate([np.arange(prompt_at[key], prompt_at[key] + new_from), own]))
        end += len(own)
    width = max(len(path) for path in paths)
    padded = np.zeros((len(paths), width), np.int64)
    slots = np.zeros(end, np.int64)
    # Backwards, so that a shared token is read from the trajectory that brought it.
    for m in reversed(range(len(paths))):
        padded[m, : len(paths[m])] = paths[m]
        slots[paths[m]] = m * width + np.arange(len(paths[m]))
    trained = [1 + np.flatnonzero(s.mask[1:]) for s in samples]
    segments = np.repeat(np.arange(len(samples)), [len(t) for t in trained])

    def tensor(array: np.ndarray, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.tensor(array, dtype=dtype, device=device)

    def of_trained(values: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate([v[t] for v, t in zip(values, trained, strict=True)])

    return PackedBatch(
        tokens=tensor(np.concatenate(tokens))[None],
        positions=tensor(np.concatenate(positions))[None],
        paths=tensor(padded),
        slots=tensor(slots),
        predictors=tensor(np.concatenate([path[t - 1] for path, t in zip(paths, trained, strict=True)])),
        targets=tensor(of_trained(s.trajectory.tokens for s in samples)),
        segments=tensor(segments),
        groups=tensor(np.array([s.group for s in samples])),
        rewards=tensor(np.array([s.reward for s in samples]), torch.float32),
        behaviour_logprobs=tensor(of_trained(s.trajectory.logprobs for s in samples), torch.float32),
        versions=tensor(of_trained(s.trajectory.versions for s in samples)),
        advantages=tensor(np.array([s.advantage for s in samples])[segments], torch.float32),
    )
