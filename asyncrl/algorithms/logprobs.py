"""Log-probs of given tokens under a model's logits, and the entropy of the distributions they were drawn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

_CHUNK_LOGITS = 2**26
"""Logits that exist at a time: 256 MiB in fp32."""
_ROWS = 512
"""Rows whose exponentials exist a second time, for the entropy."""


class _TokenLogprobs(torch.autograd.Function):
    """One fp32 scratch of the size of the logits for forward and backward together; autograd's own needs six."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scratch = logits.detach().to(torch.float32, copy=True)
        if temperature != 1.0:
            scratch /= temperature
        scratch -= scratch.amax(-1, keepdim=True)
        chosen = scratch.gather(-1, targets[:, None]).squeeze(-1)
        normaliser, energy = torch.empty_like(chosen), torch.empty_like(chosen)
        for start in range(0, len(scratch), _ROWS):
            rows = slice(start, start + _ROWS)
            exponentials = scratch[rows].exp()
            normaliser[rows] = exponentials.sum(-1)
            energy[rows] = torch.linalg.vecdot(exponentials, scratch[rows])
            scratch[rows] = exponentials
        entropies = normaliser.log() - energy / normaliser
        ctx.save_for_backward(scratch, targets, normaliser)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        ctx.mark_non_differentiable(entropies)
        return chosen - normaliser.log(), entropies

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        # d log softmax(z)_t / dz = onehot(t) - softmax(z). The scratch is ours: used up here, once.
        scratch, targets, normaliser = ctx.saved_tensors
        grad = grads[0] / ctx.temperature
        scratch *= (-grad / normaliser)[:, None]
        scratch.scatter_add_(-1, targets[:, None], grad[:, None])
        return scratch.to(ctx.dtype), None, None


def token_logprobs(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(logits / temperature)[target] and the entropy of softmax(logits / temperature) in nats.

    logits [N, V] of any float type, targets int64 [N]; both results float32 [N], the second without gradient.
    The temperature is the sampler's, so that trainer and engine speak of one distribution. fp32 inside.
    The backward pass may run once.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _TokenLogprobs.apply(logits, targets, temperature)  # type: ignore[no-untyped-call]
    return result


def chunked_logprobs(
    head: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`token_logprobs` of the logits head(hidden), which never exist as a whole: some rows at a time, computed anew in
    the backward pass.

    head: [n, d] -> [n, V]; hidden [N, d], targets int64 [N]; both results float32 [N].
    """
    vocabulary = head(hidden[:1].detach()).shape[-1]
    rows = max(1, _CHUNK_LOGITS // vocabulary)

    def score(hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return token_logprobs(head(hidden), targets, temperature)

    parts = [
        checkpoint(score, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
