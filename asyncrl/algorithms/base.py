"""What every loss takes and gives, and the ratio of two policies.

Float inputs may have any float type: they are promoted to float32 at the entrance, and float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to this before exp: e^20 = 4.9e8 is finite in fp32, with room for its square."""


@dataclass(frozen=True)
class LossOutput:
    per_token: Tensor
    """float [N]: loss of each token, with gradient; zero, with zero gradient, where the mask is False."""
    clipped: Tensor
    """bool [N]: tokens whose gradient the clipping removed, or whose weight the truncation changed."""


Loss = Callable[..., LossOutput]
"""loss(logprobs, behaviour_logprobs, prox_logprobs, advantages, mask, **coefficients) -> LossOutput."""


def promote(x: Tensor) -> Tensor:
    """x in at least float32."""
    return x if x.dtype == torch.float64 else x.float()


def kept(mask: Tensor, x: Tensor, *constants: Tensor) -> tuple[Tensor, ...]:
    """x with its gradient, and the constants without theirs: float [N] each, promoted, and zero where mask is False.

    What stands outside the mask, even NaN, gets no further than this, neither its value nor a gradient to it.
    """
    return tuple(torch.where(mask, promote(t), 0.0) for t in (x, *(c.detach() for c in constants)))


def ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """exp(logp - logp_old) with the log-ratio clamped; any shape."""
    return exp_clamped(promote(logprobs) - promote(old_logprobs))


def exp_clamped(log_ratio: Tensor) -> Tensor:
    """exp of a log-ratio clamped to the limit, outside which its gradient is zero; any shape."""
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
