"""Losses of whole trajectories, on packed tokens.

`per_token` [N] holds a trajectory's loss on each of its tokens, so that aggregation `sequence` over the tokens of
the mask is the mean over trajectories, with the exact gradient. All tokens of a trajectory must be in the call.
Delta = sum over the trajectory's tokens of the mask of (log pi - log pi_ref). M trajectories, `segments` int64 [N].
What is said per trajectory (rewards, log_z, partner, side) is given on each of its tokens, [N], and is a constant.
fp32 inside (float64 stays float64).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from asyncrl.algorithms.base import LossOutput, kept, promote
from asyncrl.algorithms.segments import segment_sum


def trajectory_balance(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    segments: Tensor,
    num_segments: int,
    ref_logprobs: Tensor,
    rewards: Tensor,
    log_z: Tensor,
    beta: float,
    **_: Any,
) -> LossOutput:
    """(log_z + Delta - R/beta)^2; log_z [N] from `log_partition`, zero at pi = pi_ref exp(R/beta) / Z.

    Malkin et al. (arXiv:2201.13259); with log_z estimated from the task's K trajectories, TBA (arXiv:2503.18929).
    Needs neither importance weights nor advantages.
    """
    logp, ref, r, z = kept(mask, logprobs, ref_logprobs, rewards, log_z)
    delta = segment_sum(logp - ref, segments, num_segments)[segments]
    return _on_tokens((z + delta - r / beta).square(), mask)


def log_partition(sums: Tensor, ref_sums: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """sg mean_k(R_k/beta - log pi_k + log pi_ref,k), a scalar, from the K trajectories of one task (TBA).

    sums, ref_sums: float [K], sums of log pi and log pi_ref over a trajectory's tokens; rewards [K]. 0 if K = 0.
    """
    terms = promote(rewards) / beta - promote(sums) + promote(ref_sums)
    return (terms.sum() / max(len(terms), 1)).detach()


def dpo(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    segments: Tensor,
    num_segments: int,
    ref_logprobs: Tensor,
    partner: Tensor,
    side: Tensor,
    beta: float = 0.1,
    **_: Any,
) -> LossOutput:
    """a(x) = -log sigmoid(beta x), x = Delta(chosen) - Delta(rejected). DPO (arXiv:2305.18290), on online pairs.

    Seen from one of the pair's two trajectories: partner [N] is the other's Delta, side [N] is +1 for the chosen and
    -1 for the rejected, x = side (Delta - partner). Returned as 2 a - sg(a): the mean over both trajectories of all
    pairs has the pairs' mean loss as its value and that loss's exact gradient, wherever the two are packed.
    """
    x = _preference(logprobs, ref_logprobs, partner, side, mask, segments, num_segments)
    return _on_tokens(_half_of_a_pair(-functional.logsigmoid(beta * x)), mask)


def ipo(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    segments: Tensor,
    num_segments: int,
    ref_logprobs: Tensor,
    partner: Tensor,
    side: Tensor,
    beta: float = 0.1,
    **_: Any,
) -> LossOutput:
    """a(x) = (x - 1/(2 beta))^2 with x, partner and side as in `dpo`. IPO (arXiv:2310.12036), on online pairs."""
    x = _preference(logprobs, ref_logprobs, partner, side, mask, segments, num_segments)
    return _on_tokens(_half_of_a_pair((x - 1 / (2 * beta)).square()), mask)


def choose_pair(rewards: Tensor) -> tuple[int, int] | None:
    """(chosen, rejected): the first best and the first worst of rewards [n]; None if all are equal, or n = 0."""
    values: list[float] = rewards.tolist()
    if not values or min(values) == max(values):
        return None
    return values.index(max(values)), values.index(min(values))


def _preference(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    partner: Tensor,
    side: Tensor,
    mask: Tensor,
    segments: Tensor,
    num_segments: int,
) -> Tensor:
    """x = side (Delta - partner), [N]."""
    logp, ref, other, sign = kept(mask, logprobs, ref_logprobs, partner, side)
    return sign * (segment_sum(logp - ref, segments, num_segments)[segments] - other)


def _half_of_a_pair(a: Tensor) -> Tensor:
    return 2 * a - a.detach()


def _on_tokens(loss: Tensor, mask: Tensor) -> LossOutput:
    return LossOutput(torch.where(mask, loss, 0.0), torch.zeros_like(mask))
