"""How the losses of all trained tokens of the *global* batch become one number.

Each token has a weight that depends on global counts alone, so any split into micro-batches or ranks adds up
to the same gradient: no means of means.
"""

from __future__ import annotations

import torch


def token_weights(
    segments: torch.Tensor,
    tokens_per_segment: torch.Tensor,
    *,
    mode: str,
    num_tokens: int,
    num_sequences: int,
    constant_length: int,
) -> torch.Tensor:
    """Weight of each trained token, float32 [N].

    segments: int64 [N], the trajectory of a token; tokens_per_segment: [M], trained tokens of the rollout that it is
    of, at least 1: with several trajectories a rollout counts once.
    mode `token`: 1/num_tokens. `sequence`: 1/(num_sequences x trained tokens of the rollout).
    `constant`: 1/(num_sequences x constant_length), Dr. GRPO (arXiv:2503.20783).
    num_tokens and num_sequences count the global batch, skipped zero-advantage groups included.
    """
    if mode == "token":
        return torch.full(segments.shape, 1.0 / max(num_tokens, 1), device=segments.device)
    if mode == "sequence":
        return 1.0 / (max(num_sequences, 1) * tokens_per_segment[segments].float())
    if mode == "constant":
        return torch.full(segments.shape, 1.0 / (max(num_sequences, 1) * constant_length), device=segments.device)
    raise ValueError(f"aggregation is token, sequence or constant, not {mode!r}")
