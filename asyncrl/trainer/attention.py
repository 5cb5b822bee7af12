"""Attention over a row that is a prefix tree (`tree.py`), registered with transformers as `asyncrl_tree`.

Every token sees the tokens on its own path and no others. On a CPU the row is never attended to as a whole: the keys
of a large node are seen by the node itself, causally, and by everything below it; what is left of the paths below are
short sequences of their own, their tails. These parts are joined by their log-sum-exp, the way FlashAttention joins
its blocks (Dao et al. 2022, section 3.1); its backward pass needs no more than the joined output and log-sum-exp, so
the parts' gradients add up. On a GPU FlexAttention skips the blocks that the tree, or a sliding window, hides; on a CPU
layers with a sliding window take a dense mask.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from asyncrl.trainer.tree import Node

logger = logging.getLogger(__name__)

NAME = "asyncrl_tree"
_BLOCK = 128
"""Tokens of FlexAttention's blocks."""
_LARGE = 2**14
"""Query-key pairs of a node from which on it pays to attend to it alone: PyTorch's kernel is the fastest there, and
slower than plain products on many small ones, in its backward pass by a factor of five."""


_FLASH = {"BACKEND": "FLASH"}
_FLASH_WIDTH = 128
"""Of heads, at most, that its kernels take with blocks of ours."""
_is_flash = False


def use_flash(device: torch.device) -> bool:
    """Let FlexAttention take FlashAttention 4's kernels where they are: package flash-attn-4, on a Hopper GPU. Says
    whether."""
    global _is_flash
    on_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    found = importlib.util.find_spec("flash_attn") and importlib.util.find_spec("flash_attn.cute")
    _is_flash = on_hopper and found is not None
    if _is_flash:
        os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    return _is_flash


@dataclass(frozen=True)
class Tails:
    """n tails of similar lengths. A token that several share is a query in the first of them and a key in all."""

    rows: torch.Tensor
    """int64 [n, L]: tokens of the row; padding repeats a tail's last."""
    asks: torch.Tensor
    """bool [n, L]: is here a query."""
    hidden: torch.Tensor
    """bool [L, L]: query i does not see key j, which comes later."""
    keys: torch.Tensor
    """int64 [U]: the tokens of all tails, each once."""
    places: torch.Tensor
    """int64: where in the n L rows these stand, those of one after those of another."""
    starts: torch.Tensor
    """int64 [U]: where in `places` a key's begin."""

    @staticmethod
    def of(tails: list[np.ndarray], news: list[np.ndarray], device: torch.device) -> Tails:
        longest = max(len(tail) for tail in tails)
        rows = np.stack([np.pad(tail, (0, longest - len(tail)), "edge") for tail in tails])
        asks = np.stack([np.pad(new, (0, longest - len(new))) for new in news])
        places = np.argsort(rows, axis=None, kind="stable")
        keys, starts = np.unique(rows.flatten()[places], return_index=True)
        hidden = np.triu(np.ones((longest, longest), bool), 1)
        return Tails(*(torch.as_tensor(x, device=device) for x in (rows, asks, hidden, keys, places, starts)))

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """[1, H, T, D] -> [n, H, L, D]."""
        return x[0].transpose(0, 1).index_select(0, self.rows.flatten()).unflatten(0, self.rows.shape).transpose(1, 2)

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """[n, H, L, ...] -> [m, H, ...]: of the queries."""
        return x.transpose(1, 2)[self.asks]

    def sum_of_keys(self, gradient: torch.Tensor) -> torch.Tensor:
        """[n, H, L, D] -> [H, U, D]: of a key, the sum over its tails."""
        _, heads, _, width = gradient.shape
        flat = gradient.transpose(1, 2).reshape(-1, heads * width)
        sums = torch.nn.functional.embedding_bag(self.places, flat, self.starts, mode="sum")
        return sums.unflatten(1, (heads, width)).transpose(0, 1)


@dataclass(frozen=True)
class RowTree:
    """What attention must know of a row of T tokens."""

    depths: torch.Tensor
    """int64 [T]."""
    ends: torch.Tensor
    """int64 [T]."""
    nodes: tuple[Node, ...]
    _blocks: dict[int | None, tuple[torch.Tensor, ...]] = field(default_factory=dict, repr=False, compare=False)

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
        """Nodes to be attended to one by one, those above first; what is above a large one counts as large."""
        found: list[Node] = []
        for start, end, below in reversed(self.nodes):
            if (end - start) * (below - start) > _LARGE or (found and found[-1][0] < below):
                found.append((start, end, below))
        return found[::-1]

    @cached_property
    def tails(self) -> list[Tails]:
        """What the paths consist of below the large nodes, those of similar lengths together."""
        large = set(self.large)
        path: list[Node] = []
        buckets: dict[int, list[np.ndarray]] = {}
        news: dict[int, list[np.ndarray]] = {}
        seen = 0
        for node in self.nodes:
            while path and path[-1][2] <= node[0]:
                path.pop()
            if node in large:
                continue
            path.append(node)
            _, end, below = node
            if end == below:
                tail = np.concatenate([np.arange(start, stop) for start, stop, _ in path])
                size = len(tail).bit_length()
                buckets.setdefault(size, []).append(tail)
                news.setdefault(size, []).append(tail >= seen)
                seen = end
        return [Tails.of(buckets[size], news[size], self.ends.device) for size in buckets]

    def prepare(self, model: torch.nn.Module) -> RowTree:
        """With the blocks that the model's layers ask for on a GPU: compiled, they cannot make them."""
        if takes_flex(self.ends.device):
            for window in windows_of(model):
                if window is None or window < len(self.ends):
                    self.block_mask(window)
        return self

    def block_mask(self, window: int | None = None) -> BlockMask:
        """For FlexAttention, the same as `mask`."""
        if window not in self._blocks:
            self._blocks[window] = _blocks(self.depths, self.ends, window)
        # Made anew in each layer: of its numbers, a compiled graph takes as fixed those that it sees made.
        length, ends, depths = self.ends.shape[0], self.ends, self.depths

        def sees(batch: torch.Tensor, head: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
            return (j <= i) & (i < ends[j])

        def sees_near(batch: torch.Tensor, head: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
            return (j <= i) & (i < ends[j]) & (depths[j] > oldest[i])

        mask = sees
        if window is not None:
            # A tensor, for not every backend takes numbers from outside.
            oldest, mask = depths - window, sees_near
        return BlockMask((length, length), *self._blocks[window], BLOCK_SIZE=(_BLOCK, _BLOCK), mask_mod=mask)


def windows_of(model: torch.nn.Module) -> set[int | None]:
    """Of the attention of its layers; None: they see all that is before."""
    return {None, *(module.sliding_window for module in model.modules() if hasattr(module, "sliding_window"))}


def takes_flex(device: torch.device) -> bool:
    return device.type == "cuda"


def _blocks(depths: torch.Tensor, ends: torch.Tensor, window: int | None) -> tuple[torch.Tensor, ...]:
    """Which blocks of keys each block of queries sees, as FlexAttention wants it: numbers and places of those seen in
    part and of those seen whole, and the same of queries for each block of keys.

    Made from the blocks' bounds, never from T x T pairs: a block is left out if no token of it is seen, and seen
    without a mask if all are. depths and ends: int64 [T].
    """
    length = len(ends)
    number = -(-length // _BLOCK)
    # What fills up the last block is seen by none, and is as deep as the last token.
    padded = torch.nn.functional.pad(ends, (0, number * _BLOCK - length)).view(number, _BLOCK)
    deep = torch.cat([depths, depths[-1:].expand(number * _BLOCK - length)]).view(number, _BLOCK)
    block = torch.arange(number, device=ends.device)
    start = block[:, None] * _BLOCK
    seen = (block <= block[:, None]) & (padded.amax(1) > start)
    whole = (block < block[:, None]) & (padded.amin(1) >= start + _BLOCK)
    whole[-1] &= length % _BLOCK == 0
    if window is not None:
        seen &= deep.amin(1)[:, None] - deep.amax(1) < window
        whole &= deep.amax(1)[:, None] - deep.amin(1) < window
    kinds = seen & ~whole, whole
    return tuple(part for blocks in (*kinds, *(kind.T for kind in kinds)) for part in _listed(blocks))


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bool [n, n] -> how many there are in each row, int32 [1, 1, n], and which, int32 [1, 1, n, n], those first."""
    places = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], places.to(torch.int32)[None, None]


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
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """query [1, H, T, D], key and value [1, H_kv, T, D] -> ([1, T, H, D], None). Without a tree the row is one
    sequence. ValueError for capped scores and for sinks."""
    if softcap is not None or s_aux is not None:
        raise ValueError("its attention caps its scores" if softcap is not None else "its attention has sinks")
    length = query.shape[2]
    tree = tree or RowTree.of_one(length, query.device)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    query, key = query.to(value.dtype), key.to(value.dtype)
    window = sliding_window if sliding_window is not None and sliding_window < length else None
    exact = query.dtype == torch.float64
    narrow = value.shape[-1] != query.shape[-1]
    on_gpu = takes_flex(query.device)
    if narrow or (exact if on_gpu else window is not None):
        if not exact:
            _say_dense("keys and values of different widths" if narrow else "a sliding window shorter than a row")
        mask = tree.mask(window)
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    elif on_gpu:
        options = _FLASH if _is_flash and query.shape[-1] <= _FLASH_WIDTH and query.element_size() == 2 else None
        flex = flex_attention if torch.compiler.is_compiling() else _flex()
        out = flex(
            query, key, value, block_mask=tree.block_mask(window), scale=scale, enable_gqa=True, kernel_options=options
        )
    else:
        out = _Blockwise.apply(query, key, value, tree, scale)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


@cache
def _say_dense(why: str) -> None:
    logger.warning("attention takes a mask of whole rows, which costs more the longer they are: it has %s", why)


@cache
def _flex() -> Any:
    """As a whole graph or not at all: past dynamo's limit of recompilations it would go on without a kernel, with the
    scores of T x T pairs in memory."""
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


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

        def join(place: slice, o: torch.Tensor, part_lse: torch.Tensor) -> None:
            before = lse[0, :, place]
            joined = torch.logaddexp(before, part_lse)
            out[0, :, place] = (
                out[0, :, place] * (before - joined).exp()[..., None] + o * (part_lse - joined).exp()[..., None]
            )
            lse[0, :, place] = joined

        for tails in tree.tails:
            o, part_lse = _plain(*(tails.gather(x) for x in (query, key, value)), tails.hidden, scale)
            place = tails.rows[tails.asks]
            out[0].transpose(0, 1)[place] = tails.queries(o).to(exact)
            lse[0].T[place] = tails.queries(part_lse)
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
        for tails in tree.tails:
            asking = (tails.gather(x) for x in (grad.to(query.dtype), query, lse[..., None], delta[..., None]))
            dq, dk, dv = _plain_backward(
                *asking, tails.gather(key), tails.gather(value), tails.asks, tails.hidden, scale
            )
            sums[0][0].transpose(0, 1)[tails.rows[tails.asks]] = tails.queries(dq).to(lse.dtype)
            for total, gradient in ((sums[1], dk), (sums[2], dv)):
                total[0, :, tails.keys] += tails.sum_of_keys(gradient)
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
    """query [n, H, Q, D], key and value [n, H_kv, K, D], hidden [Q, K] -> output and log-sum-exp [n, H, Q]."""
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
    asks: torch.Tensor,
    hidden: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """dq = dS k, dk = dS^T q, dv = P^T dO with P = exp(qk - L), dS = P (dO v^T - delta), delta = sum(dO O)."""
    padding = ~asks[:, None, :, None]
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
    scores.unflatten(2, (-1, len(hidden))).masked_fill_(hidden, -math.inf)
    return scores


AttentionInterface.register(NAME, tree_attention)
