"""Attention over a row that is a prefix tree (`tree.py`), registered with transformers as `asyncrl_tree`.

Every token sees the tokens on its own path and no others. On a CPU the row is never attended to as a whole: the keys
of each node are seen by the node itself, causally, and by everything below it. These parts are joined by their
log-sum-exp, the way FlashAttention joins its blocks (Dao et al. 2022, section 3.1); its backward pass needs no more
than the joined output and log-sum-exp, so the parts' gradients add up. On a GPU FlexAttention skips the blocks that
the tree hides. Layers with a sliding window take a dense mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from asyncrl.trainer.tree import Node

NAME = "asyncrl_tree"
_LARGE = 2**14
"""Query-key pairs of a node from which on it pays to attend to it alone: PyTorch's kernel is the fastest there, and
slower than plain products on many small ones, in its backward pass by a factor of five."""


@dataclass(frozen=True)
class Part:
    """The keys of n nodes of similar sizes, none below another, and the queries that see them. Rows of the row's
    tokens; padding repeats a node's last token."""

    queries: torch.Tensor
    """int64 [n, Q]."""
    keys: torch.Tensor
    """int64 [n, K]."""
    query_is_real: torch.Tensor
    """bool [n, Q]."""
    key_is_real: torch.Tensor
    """bool [n, K]."""
    hidden: torch.Tensor
    """bool [n, 1, Q, K]: query does not see key."""


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
    def large(self) -> list[Node]:
        """Nodes to be attended to one by one, those above first."""
        return [node for node in self.nodes if _num_pairs(node) > _LARGE]

    @cached_property
    def small(self) -> list[Part]:
        """The other nodes, those of similar sizes together."""
        buckets: dict[tuple[int, int, int], list[Node]] = {}
        open_until: list[int] = []
        for start, end, below in self.nodes:
            while open_until and open_until[-1] <= start:
                open_until.pop()
            if _num_pairs((start, end, below)) <= _LARGE:
                sizes = len(open_until), (below - start - 1).bit_length(), (end - start - 1).bit_length()
                buckets.setdefault(sizes, []).append((start, end, below))
            open_until.append(below)
        return [self._part(nodes) for nodes in buckets.values()]

    def _part(self, nodes: list[Node]) -> Part:
        starts, ends, below = torch.tensor(nodes, device=self.ends.device).T[:, :, None]
        queries, query_is_real = _ranges(starts, below)
        keys, key_is_real = _ranges(starts, ends)
        i, j = queries[:, :, None], keys[:, None]
        seen = (j <= i) & (i < self.ends[j]) & key_is_real[:, None]
        return Part(queries, keys, query_is_real, key_is_real, ~seen[:, None])

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


def _num_pairs(node: Node) -> int:
    start, end, below = node
    return (end - start) * (below - start)


def _ranges(starts: torch.Tensor, stops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, L]: start, start + 1, ... up to the longest, and which of them are before their stop."""
    rows = starts + torch.arange(int((stops - starts).max()), device=starts.device)
    return torch.minimum(rows, stops - 1), rows < stops


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
        out = query.new_zeros((1, length, heads, width), dtype=exact).transpose(1, 2)
        lse = query.new_full((1, heads, length), -math.inf, dtype=exact)

        def join(place: Any, o: torch.Tensor, part_lse: torch.Tensor) -> None:
            before = lse[0, :, place]
            joined = torch.logaddexp(before, part_lse)
            out[0, :, place] = (
                out[0, :, place] * (before - joined).exp()[..., None] + o * (part_lse - joined).exp()[..., None]
            )
            lse[0, :, place] = joined

        for part in tree.small:
            gathered = _gather(query, part.queries), _gather(key, part.keys), _gather(value, part.keys)
            o, part_lse = _plain(*gathered, part.hidden, scale)
            join(part.queries[part.query_is_real], _real(o, part.query_is_real), _real(part_lse, part.query_is_real))
        for start, end, below in tree.large:
            for asking, causal in ((slice(start, end), True), (slice(end, below), False)):
                if asking.start < asking.stop:
                    seen = key[:, :, start:end], value[:, :, start:end]
                    o, part_lse = flash(query[:, :, asking], *seen, 0.0, causal, scale=scale)
                    join(asking, o[0], part_lse[0])
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.tree, ctx.scale = tree, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        query, key, value, out, lse = ctx.saved_tensors
        tree, scale, grad = ctx.tree, ctx.scale, grads[0]
        sums = [torch.zeros(x.shape, dtype=lse.dtype) for x in (query, key, value)]
        delta = (grad.to(lse.dtype) * out).sum(-1)
        for part in tree.small:
            asking = (_gather(x, part.queries) for x in (grad.to(query.dtype), query, lse[..., None], delta[..., None]))
            seen = _gather(key, part.keys), _gather(value, part.keys)
            parts = _plain_backward(*asking, *seen, part.query_is_real, part.hidden, scale)
            kinds = ((part.queries, part.query_is_real), *[(part.keys, part.key_is_real)] * 2)
            for total, gradient, (rows, is_real) in zip(sums, parts, kinds, strict=True):
                total[0, :, rows[is_real]] += _real(gradient, is_real)
        for start, end, below in tree.large:
            node = slice(start, end)
            for rows, causal in ((node, True), (slice(end, below), False)):
                if rows.start < rows.stop:
                    asking = grad[:, :, rows], query[:, :, rows], key[:, :, node], value[:, :, node]
                    parts = flash(*asking, out[:, :, rows], lse[:, :, rows], 0.0, causal, scale=scale)
                    for total, gradient, place in zip(sums, parts, (rows, node, node), strict=True):
                        total[:, :, place] += gradient
        return (*(total.to(query.dtype) for total in sums), None, None)


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [n, H, Q, D], key and value [n, H_kv, K, D], hidden [n, 1, Q, K] -> output and log-sum-exp [n, H, Q]."""
    scores = _scores(_fold(query, key), key, hidden, scale)
    lse = scores.logsumexp(-1, keepdim=True)
    out = scores.sub_(lse).exp_().to(value.dtype) @ value
    return out.reshape(query.shape), lse.reshape(query.shape[:3])


def _plain_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_is_real: torch.Tensor,
    hidden: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """dq = dS k, dk = dS^T q, dv = P^T dO with P = exp(qk - L), dS = P (dO v^T - delta), delta = sum(dO O)."""
    padding = ~query_is_real[:, None, :, None]
    shape = query.shape
    grad, delta = _fold(grad.masked_fill(padding, 0.0), key), _fold(delta.masked_fill(padding, 0.0), key)
    query = _fold(query, key)
    weights = _scores(query, key, hidden, scale).sub_(_fold(lse, key)).exp_()
    dv = weights.to(value.dtype).transpose(-1, -2) @ grad
    ds = (grad @ value.transpose(-1, -2)).to(weights.dtype)
    ds = ds.sub_(delta).mul_(weights).mul_(scale).to(query.dtype)
    return (ds @ key).reshape(shape), ds.transpose(-1, -2) @ query, dv


def _fold(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[n, H, Q, D] -> [n, H_kv, H/H_kv Q, D]: the queries of all heads that share keys, one after another."""
    return x.unflatten(1, (key.shape[1], -1)).flatten(2, 3)


def _scores(query: torch.Tensor, key: torch.Tensor, hidden: torch.Tensor, scale: float) -> torch.Tensor:
    """[n, H_kv, H/H_kv Q, K] for folded queries, at least in fp32; -inf where hidden."""
    exact = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(exact) @ key.to(exact).transpose(-1, -2)).mul_(scale)
    scores.unflatten(2, (-1, hidden.shape[2])).masked_fill_(hidden[:, None], -math.inf)
    return scores


def _gather(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[1, H, T, D] -> [n, H, L, D]."""
    number, width = rows.shape
    return x[0].index_select(1, rows.flatten()).view(x.shape[1], number, width, -1).transpose(0, 1)


def _real(x: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
    """[n, H, L, ...] -> [H, m, ...]: what is no padding."""
    return x.transpose(0, 1)[:, is_real]


AttentionInterface.register(NAME, tree_attention)
