"""Weights and rejections for tokens that another policy, or another engine, sampled: constants to autograd.

A correction makes of importance weights [N] those that the losses are multiplied by, float [N], and says which it
changed, bool [N]; the recipe's coefficients come by keyword.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from asyncrl.algorithms.base import exp_clamped, kept, promote
from asyncrl.algorithms.kl import kl_estimate
from asyncrl.algorithms.segments import segment_mean, segment_sum

WeightLevel = Literal["token", "sequence", "geometric"]


def importance_weights(
    prox_logprobs: Tensor,
    behaviour_logprobs: Tensor,
    *,
    level: WeightLevel,
    segments: Tensor,
    num_segments: int,
    mask: Tensor,
) -> Tensor:
    """How much likelier pi_prox makes a token than pi_beh did, float [N], no gradient; 1 where mask [N] is False.

    With d_t = log pi_prox - log pi_beh: `token` exp(d_t); `sequence` exp(sum_t d_t), unbiased and of high variance;
    `geometric` exp(mean_t d_t), as in GSPO (arXiv:2507.18071). The latter two over the tokens of the mask of a
    trajectory (segments int64 [N], all its tokens in the call), on each of them. Exponents are clamped.
    Raises ValueError for another level.
    """
    prox, beh = kept(mask, prox_logprobs, behaviour_logprobs)
    d = (prox - beh).detach()
    if level == "sequence":
        d = segment_sum(d, segments, num_segments)[segments]
    elif level == "geometric":
        d = segment_mean(d, segments, num_segments, mask)[segments]
    elif level != "token":
        raise ValueError(f"the level of importance weights is token, sequence or geometric, not {level!r}")
    return torch.where(mask, exp_clamped(d), 1.0)


def tis(weights: Tensor, *, tis_cap: float, **_: Any) -> tuple[Tensor, Tensor]:
    """min(w, tis_cap): truncated importance sampling (Ionides 2008; TIS)."""
    return weights.clamp(max=tis_cap), weights >= tis_cap


def mis(weights: Tensor, *, mis_low: float, mis_high: float, **_: Any) -> tuple[Tensor, Tensor]:
    """w where mis_low <= w <= mis_high, else 0: masked importance sampling (MIS, IcePop)."""
    kept = torch.where((weights >= mis_low) & (weights <= mis_high), weights, 0.0)
    return kept, kept == 0


def reject_by_kl(
    logprobs: Tensor, behaviour_logprobs: Tensor, segments: Tensor, num_segments: int, mask: Tensor, limit: float
) -> Tensor:
    """Tokens of the trajectories whose mean KL(pi_beh || pi) is at most limit (nats per token), bool [N].

    The estimate is k3, e^d - 1 - d with d = log pi - log pi_beh: never negative, so that tokens that became likelier
    cannot hide those that became unlikelier. Mean over the tokens of the mask; a trajectory without any stays.
    """
    current, beh = kept(mask, logprobs, behaviour_logprobs)
    mean = segment_mean(kl_estimate(beh, current, "k3").detach(), segments, num_segments, mask)
    return (mean <= limit)[segments]


def staleness_weights(ages: Tensor, kind: Literal["sqrt", "power"] = "sqrt", exponent: float = 0.5) -> Tensor:
    """1/sqrt(1 + age) (FedBuff, arXiv:2106.06639) or (1 + age)^-exponent (FedAsync, arXiv:1903.03934), float32 [N].

    ages: [N], updates between a token's sampling and its use, >= 0; age 0 has weight exactly 1.
    Raises ValueError for another kind.
    """
    if kind == "sqrt":
        return (1 + promote(ages)).rsqrt()
    if kind == "power":
        return (1 + promote(ages)).pow(-exponent)
    raise ValueError(f"staleness weights are sqrt or power, not {kind!r}")


def loglinear_prox(
    logprobs: Tensor, behaviour_logprobs: Tensor, versions: Tensor, prox_version: float, current_version: float
) -> Tensor:
    """log pi_prox ~ log pi_b + alpha (log pi - log pi_b), float [N], no gradient: no second forward pass.

    alpha = (v_prox - v_b) / (v_current - v_b) with v_b = versions, int [N], the version that sampled a token (A-3PO);
    alpha = 1 where v_b = v_current. Versions between two whole ones are those within a step of several updates.
    """
    current, beh = promote(logprobs).detach(), promote(behaviour_logprobs)
    span = current_version - versions
    same = span == 0
    alpha = torch.where(same, 1, prox_version - versions).to(current.dtype) / torch.where(same, 1, span)
    return torch.lerp(beh, current, alpha)
