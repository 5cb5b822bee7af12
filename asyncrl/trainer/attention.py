"""Causal attention over packed rows, registered with transformers as `asyncrl_packed`.

Linear layers run on the packed row, so they see neither padding nor a shared prompt twice. Attention alone
gathers the row into one line per trajectory, [M, heads, L, head_dim], calls PyTorch's causal SDPA and reads each
token's output back from one place. The paths come through the model's keyword arguments (`packing.PackedBatch`).
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "asyncrl_packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    paths: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """query [1, H, T, D], key and value [1, H_kv, T, D] -> ([1, T, H, D], None).

    paths: int64 [M, L], slots: int64 [T]; without them the row is one trajectory.
    """

    def unpack(x: torch.Tensor) -> torch.Tensor:
        if paths is None:
            return x
        num, length = paths.shape
        return x[0].index_select(1, paths.flatten()).view(x.shape[1], num, length, -1).transpose(0, 1)

    # Padding stands after the end of a trajectory, where a causal mask hides it from every real token.
    out = scaled_dot_product_attention(
        unpack(query), unpack(key), unpack(value), is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=True
    )
    out = out.transpose(1, 2)
    if slots is not None:
        out = out.flatten(0, 1).index_select(0, slots)[None]
    return out.contiguous(), None


AttentionInterface.register(NAME, packed_attention)
