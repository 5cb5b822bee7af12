"""Causal attention over packed rows, registered with transformers as `asyncrl_packed`.

Linear layers run on the packed row, so they never see padding. Attention alone scatters the row into
[M, heads, max_length, head_dim], calls PyTorch's causal SDPA and gathers back; micro-batches hold
trajectories of similar length, so that little of this scratch is padding. The sequence bounds come through
transformers' own keyword arguments `cu_seq_lens_q` and `max_length_q`.
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
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """query [1, H, T, D], key and value [1, H_kv, T, D] -> ([1, T, H, D], None).

    cu_seq_lens_q: int32 [M + 1], bounds of the trajectories in the row; without it the row is one trajectory.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        out = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None
    num_tokens = query.shape[2]
    num_segments = cu_seq_lens_q.numel() - 1
    index = torch.arange(num_tokens, device=query.device)
    segment = torch.searchsorted(cu_seq_lens_q[1:], index, right=True)
    slot = segment * max_length_q + index - cu_seq_lens_q[segment]

    def unpack(x: torch.Tensor) -> torch.Tensor:
        heads, head_dim = x.shape[1], x.shape[3]
        padded = x.new_zeros(num_segments * max_length_q, heads, head_dim)
        padded = padded.index_copy(0, slot, x[0].transpose(0, 1))
        return padded.view(num_segments, max_length_q, heads, head_dim).transpose(1, 2)

    out = scaled_dot_product_attention(
        unpack(query),
        unpack(key),
        unpack(value),
        is_causal=True,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=True,
    )
    heads, head_dim = out.shape[1], out.shape[3]
    flat = out.transpose(1, 2).reshape(num_segments * max_length_q, heads, head_dim)
    return flat.index_select(0, slot)[None], None


AttentionInterface.register(NAME, packed_attention)
