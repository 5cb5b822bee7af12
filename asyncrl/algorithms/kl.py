"""Estimates of a KL divergence from the sampled tokens alone (Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from asyncrl.algorithms.base import LOG_RATIO_LIMIT, promote

KlKind = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KlKind) -> Tensor:
    """Per-token estimate of KL(pi || pi_ref) for tokens sampled from pi, [N] -> [N], differentiable in logprobs.

    With d = log pi - log pi_ref:
    k1 = d: unbiased, may be negative. As a loss its gradient is grad log pi, which is zero on average: no use as a
    loss, it belongs into the reward.
    k2 = d^2/2: biased, gradient d grad log pi, whose mean on policy is exactly the gradient of KL(pi || pi_ref).
    k3 = e^-d - 1 + d: unbiased and never negative; gradient (1 - pi_ref/pi) grad log pi, whose mean on policy is
    the gradient of the other direction, KL(pi_ref || pi). For -d beyond the limit of log-ratios it is constant.
    fp32 inside (float64 stays float64). Raises ValueError for another kind.
    """
    d = promote(logprobs) - promote(ref_logprobs).detach()
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        d = d.clamp(min=-LOG_RATIO_LIMIT)
        return (-d).expm1() + d
    raise ValueError(f"the KL estimate is k1, k2 or k3, not {kind!r}")
