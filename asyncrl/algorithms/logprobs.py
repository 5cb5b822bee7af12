"""Log-probs of given tokens under a language model's output head, and the entropy of the distributions they were drawn
from, without ever holding the logits.

[N, V] is computed in chunks, once forward and once more backward: the softmax is online (Milakov & Gimelshein
2018), the gradient of a tile is used up before the next is computed (Wijmans et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

_EDGE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of a tile, at most: measured on the one to stay in its cache, to keep the other busy."""
_FAR = 1e4
"""exp(-_FAR) is 0."""


@dataclass(frozen=True)
class Head:
    """Hidden states [N, d] to logits [N, V]: cap tanh(scale (h W^T + b) / cap), or without tanh if cap is None."""

    weight: torch.Tensor
    """[V, d]."""
    bias: torch.Tensor | None = None
    """[V]."""
    scale: float = 1.0
    cap: float | None = None

    def cut(self, width: int | None) -> Head:
        """The head of the first `width` tokens; None: of all."""
        return replace(self, weight=self.weight[:width], bias=None if self.bias is None else self.bias[:width])

    def logits(self, hidden: torch.Tensor, columns: slice = slice(None)) -> torch.Tensor:
        """In fp32, of part of the vocabulary; products in the type of `hidden`."""
        bias = None if self.bias is None else self.bias[columns].to(hidden.dtype)
        logits = torch.nn.functional.linear(hidden, self.weight[columns].to(hidden.dtype), bias).float()
        if self.scale != 1.0:
            logits *= self.scale
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits


def head_logprobs(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(logits / temperature)[target], and the entropy of softmax(logits / temperature) in nats.

    hidden [N, d], targets int64 [N]; both results float32 [N], the second without gradient. Matrix products are in
    `dtype`, everything else in fp32. The temperature is the sampler's, so that trainer and engine speak of one
    distribution.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _HeadLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, head, temperature, dtype
    )
    return result


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
        temperature: float,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        # The largest logit so far, and with it sum(exp(z - largest)) and sum(exp(z - largest) (z - largest)).
        largest, total, energy = torch.full_like(chosen, -math.inf), torch.zeros_like(chosen), torch.zeros_like(chosen)
        for rows in _blocks(hidden):
            for columns, logits in _tiles(head, hidden[rows].to(dtype)):
                if temperature != 1.0:
                    logits /= temperature
                at, places = _inside(targets[rows], columns)
                chosen[rows][at] = logits[at, places]
                before = largest[rows].clone()
                torch.maximum(before, logits.amax(-1), out=largest[rows])
                logits -= largest[rows, None]
                exponentials = logits.exp()
                shift = (before - largest[rows]).clamp_(min=-_FAR)
                energy[rows] = (energy[rows] + shift * total[rows]) * shift.exp()
                energy[rows] += torch.linalg.vecdot(exponentials, logits)
                total[rows] = total[rows] * shift.exp() + exponentials.sum(-1)
        normaliser = largest + total.log()
        entropies = total.log() - energy / total
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.head, ctx.temperature, ctx.dtype = head, temperature, dtype
        ctx.mark_non_differentiable(entropies)
        return chosen - normaliser, entropies

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # d log softmax(z)_t / dz = onehot(t) - softmax(z).
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        head, temperature, dtype = ctx.head, ctx.temperature, ctx.dtype
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.zeros_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight) if needs_weight else None
        d_bias = torch.zeros_like(bias) if needs_bias else None
        grad = grads[0] * (head.scale / temperature)
        for rows in _blocks(hidden):
            block = hidden[rows].to(dtype)
            d_block = torch.zeros_like(block, dtype=torch.float32)
            for columns, logits in _tiles(head, block):
                slope = None if head.cap is None else 1 - (logits / head.cap).square()
                if temperature != 1.0:
                    logits /= temperature
                products = logits.sub_(normaliser[rows, None]).exp_().mul_(-grad[rows, None])
                at, places = _inside(targets[rows], columns)
                products[at, places] += grad[rows][at]
                if slope is not None:
                    products *= slope
                if d_bias is not None:
                    d_bias[columns] += products.sum(0)
                products = products.to(dtype)
                d_block += products @ weight[columns].to(dtype)
                if d_weight is not None:
                    d_weight[columns] += products.T @ block
            if d_hidden is not None:
                d_hidden[rows] = d_block
        return d_hidden, d_weight, d_bias, None, None, None, None


def _blocks(hidden: torch.Tensor) -> Iterator[slice]:
    """Rows, in parts of about the same size."""
    number = len(hidden)
    size = -(-number // max(1, -(-number // _EDGE[hidden.device.type])))
    return (slice(start, start + size) for start in range(0, number, size))


def _tiles(head: Head, block: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Logits of some rows, a part of the vocabulary at a time; the receiver may overwrite them."""
    width = _EDGE[block.device.type]
    for start in range(0, len(head.weight), width):
        columns = slice(start, start + width)
        yield columns, head.logits(block, columns)


def _inside(targets: torch.Tensor, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose target is among the columns, and where."""
    at = ((targets >= columns.start) & (targets < columns.stop)).nonzero()[:, 0]
    return at, targets[at] - columns.start
