"""Attention over a row that is a prefix tree (`tree.py`), registered with transformers as `asyncrl_tree`.

Every token sees the tokens on its own path and no others. On a CPU no mask is made: each node attends to itself
causally, everything below a node attends to the node in full, and these parts are joined by their log-sum-exp, the
way FlashAttention joins its blocks (Dao et al. 2022, section 3.1); its backward pass needs no more than the joined
output and log-sum-exp, so the parts' gradients add up. On a GPU FlexAttention skips the blocks that the tree hides.
Layers with a sliding window take a dense mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from asyncrl.trainer.tree import Node

NAME = "asyncrl_tree"
_SMALLEST_BUCKET = 16


@dataclass(frozen=True)
class Bucket:
    """n nodes side by side, L tokens each."""

    rows: torch.Tensor
    """int64 [n, L]: tokens of the row."""
    padding: torch.Tensor
    """bool [n, L]."""
    real: torch.Tensor
    """int64: places in the flattened rows that are no padding."""
    tokens: torch.Tensor
    """int64: the tokens of the row there."""


@dataclass(frozen=True)
class RowTree:
    """What attention must know of a row of T tokens."""

    depths: torch.Tensor
    """int64 [T]."""
    ends: torch.Tensor
    """int64 [T]."""
    nodes: tuple[Node, ...]

    @staticmethod
    def of_one(length: int, device: torch.device) -> RowTree:
        """A row that is one sequence."""
        whole = torch.full((length,), length, device=device)
        return RowTree(torch.arange(length, device=device), whole, ((0, length, length),))

    def mask(self, window: int | None = None) -> torch.Tensor:
        """bool [T, T]: whether token i sees token j, if it is less than `window` positions back."""
        place = torch.arange(len(self.ends), device=self.ends.device)
        seen = (place[None] <= place[:, None]) & (place[:, None] < self.ends[None])
        return seen if window is None else seen & (self.depths[:, None] - self.depths[None] < window)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """All nodes, those of similar lengths together."""
        by_width: dict[int, list[tuple[int, int]]] = {}
        for start, end, _ in self.nodes:
            width = max(_SMALLEST_BUCKET, 1 << (end - start - 1).bit_length())
            by_width.setdefault(width, []).append((start, end))
        made = []
        for ranges in by_width.values():
            starts, stops = torch.tensor(ranges, device=self.ends.device).T[:, :, None]
            rows = starts + torch.arange(int((stops - starts).max()), device=self.ends.device)
            padding = rows >= stops
            # Padding repeats the last token: a causal mask hides it from the others, and its output is not read.
            rows = torch.minimum(rows, stops - 1)
            made.append(Bucket(rows, padding, (~padding).flatten().nonzero()[:, 0], rows[~padding]))
        return made

    @cached_property
    def block_mask(self) -> Any:
        """For FlexAttention."""
        from torch.nn.attention.flex_attention import create_block_mask

        ends, length = self.ends, len(self.ends)
        return create_block_mask(lambda b, h, i, j: (j <= i) & (i < ends[j]), None, None, length, length, ends.device)


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: RowTree | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """query [1, H, T, D], key and value [1, H_kv, T, D] -> ([1, T, H, D], None). Without a tree the row is one
    sequence."""
    length = query.shape[2]
    tree = tree or RowTree.of_one(length, query.device)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    query, key = query.to(value.dtype), key.to(value.dtype)
    window = sliding_window if sliding_window is not None and sliding_window < length else None
    if window is not None or value.shape[-1] != query.shape[-1]:
        mask = tree.mask(window)
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    elif query.device.type == "cuda":
        out = _flex()(query, key, value, block_mask=tree.block_mask, scale=scale, enable_gqa=True)
    else:
        out = _Blockwise.apply(query, key, value, tree, scale)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


@cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _parts(tree: RowTree) -> Iterator[tuple[slice, slice]]:
    """Queries and keys of the parts that need no mask: all below a node, and the node."""
    for start, end, below in tree.nodes:
        if below > end:
            yield slice(end, below), slice(start, end)


class _Blockwise(torch.autograd.Function):
    """In the formulas, o and l are the output and the log-sum-exp of a part, O and L those of all of them:
    L = log sum exp(l), O = sum exp(l - L) o."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: RowTree, scale: float
    ) -> torch.Tensor:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        _, heads, length, width = query.shape
        exact = torch.promote_types(query.dtype, torch.float32)
        # As the caller wants it, with the heads of a token side by side.
        out = query.new_empty((1, length, heads, width), dtype=exact).transpose(1, 2)
        lse = query.new_empty((1, heads, length), dtype=exact)
        for bucket in tree.buckets:
            o, part_lse = flash(*(_gather(x, bucket) for x in (query, key, value)), 0.0, True, scale=scale)
            out[0, :, bucket.tokens] = _flat(o)[:, bucket.real].to(exact)
            lse[0, :, bucket.tokens] = part_lse.transpose(0, 1).flatten(1)[:, bucket.real]
        for below, node in _parts(tree):
            o, part_lse = flash(query[:, :, below], key[:, :, node], value[:, :, node], 0.0, False, scale=scale)
            before, o_before = lse[:, :, below], out[:, :, below]
            joined = torch.logaddexp(before, part_lse)
            out[:, :, below] = o_before * (before - joined).exp()[..., None] + o * (part_lse - joined).exp()[..., None]
            lse[:, :, below] = joined
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.tree, ctx.scale = tree, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # dq = dS k, dk = dS^T q, dv = P^T dO with P = exp(qk - L), dS = P (dO v^T - sum(dO O)): sums over the parts.
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        query, key, value, out, lse = ctx.saved_tensors
        tree, scale, grad = ctx.tree, ctx.scale, grads[0]
        sums = [torch.empty(x.shape, dtype=lse.dtype) for x in (query, key, value)]
        for bucket in tree.buckets:
            real_grad = _gather(grad, bucket).masked_fill(bucket.padding[:, None, :, None], 0.0)
            rest = (_gather(x, bucket) for x in (query, key, value, out))
            parts = flash(real_grad, *rest, _gather(lse[..., None], bucket)[..., 0], 0.0, True, scale=scale)
            for total, part in zip(sums, parts, strict=True):
                total[0, :, bucket.tokens] = _flat(part)[:, bucket.real].to(lse.dtype)
        for below, node in _parts(tree):
            asking, asked = (grad[:, :, below], query[:, :, below]), (key[:, :, node], value[:, :, node])
            parts = flash(*asking, *asked, out[:, :, below], lse[:, :, below], 0.0, False, scale=scale)
            for total, part, place in zip(sums, parts, (below, node, node), strict=True):
                total[:, :, place] += part
        return (*(total.to(query.dtype) for total in sums), None, None)


def _gather(x: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """[1, H, T, D] -> [n, H, L, D]."""
    number, width = bucket.rows.shape
    return x[0].index_select(1, bucket.rows.flatten()).view(x.shape[1], number, width, -1).transpose(0, 1)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """[n, H, L, D] -> [H, n L, D]."""
    return x.transpose(0, 1).flatten(1, 2)


AttentionInterface.register(NAME, tree_attention)
