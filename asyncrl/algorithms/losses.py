"""Policy losses per trained token: pure functions of float tensors [N] (N trained tokens of a micro-batch).

Notation (Schulman et al., arXiv:1707.06347; Hilton et al., arXiv:2110.00641): pi is the policy being optimised,
pi_prox the "old" policy of the ratio r = pi/pi_prox, pi_beh the one that sampled the token, A the advantage, sg a
constant to autograd. Where a paper's old policy is the behaviour policy, the caller gives that as pi_prox.
The caller sums `per_token` under its declared aggregation; corrections multiply it (see `corrections.py`).
`mask`, bool [N]: tokens that count; elsewhere loss and gradient are zero whatever the inputs hold. All inputs but
`logprobs` are constants.
bf16 and fp16 inputs are reduced in float32; float64 stays float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asyncrl.algorithms.base import LossOutput, exp_clamped, kept, ratio
from asyncrl.algorithms.segments import segment_mean


def reinforce(
    logprobs: Tensor, behaviour_logprobs: Tensor, prox_logprobs: Tensor, advantages: Tensor, mask: Tensor, **_: Any
) -> LossOutput:
    """-A log pi (Williams 1992). Uses neither behaviour nor proximal log-probs. With best_of_n: SFT on the best."""
    logp, a = kept(mask, logprobs, advantages)
    return LossOutput(-a * logp, torch.zeros_like(mask))


def sft(
    logprobs: Tensor, behaviour_logprobs: Tensor, prox_logprobs: Tensor, advantages: Tensor, mask: Tensor, **_: Any
) -> LossOutput:
    """-log pi, the cross-entropy of demonstrations: nothing else that is given counts."""
    (logp,) = kept(mask, logprobs)
    return LossOutput(-logp, torch.zeros_like(mask))


def _clip(r: Tensor, a: Tensor, clip_low: float, clip_high: float, dual_clip: float | None) -> LossOutput:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), and for A < 0 at most -dual_clip A; r and A float [N]."""
    unclipped = r * a
    limited = r.clamp(1 - clip_low, 1 + clip_high) * a
    objective, clipped = torch.minimum(unclipped, limited), limited < unclipped
    if dual_clip is not None:
        bounded = (a < 0) & (objective < dual_clip * a)
        objective, clipped = torch.where(bounded, dual_clip * a, objective), clipped | bounded
    return LossOutput(-objective, clipped)


def ppo(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    **_: Any,
) -> LossOutput:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A); where A < 0 and dual_clip = c > 1: -max(min(..), c A).

    PPO (arXiv:1707.06347); dual clip (Ye et al., arXiv:1912.09729); clip_high > clip_low: DAPO (arXiv:2503.14476).
    """
    logp, old, a = kept(mask, logprobs, prox_logprobs, advantages)
    return _clip(ratio(logp, old), a, clip_low, clip_high, dual_clip)


def decoupled_ppo(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    **_: Any,
) -> LossOutput:
    """sg(pi_prox/pi_beh) x ppo: the trust region is around pi_prox, data come from pi_beh.

    Hilton et al. (arXiv:2110.00641); for language models AReaL (arXiv:2505.24298).
    """
    logp, beh, prox, a = kept(mask, logprobs, behaviour_logprobs, prox_logprobs, advantages)
    inner = _clip(ratio(logp, prox), a, clip_low, clip_high, dual_clip)
    return LossOutput(ratio(prox, beh).detach() * inner.per_token, inner.clipped)


def tis(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    tis_cap: float = 1.0,
    **_: Any,
) -> LossOutput:
    """-sg(clip(r, 0, tis_cap)) A log pi: truncated importance sampling (V-trace's rho, arXiv:1802.01561)."""
    logp, old, a = kept(mask, logprobs, prox_logprobs, advantages)
    r = ratio(logp, old).detach()
    return LossOutput(-r.clamp(max=tis_cap) * a * logp, (r > tis_cap) & mask)


def cispo(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    **_: Any,
) -> LossOutput:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi: no token loses its gradient.

    MiniMax-M1 (arXiv:2506.13585).
    """
    logp, old, a = kept(mask, logprobs, prox_logprobs, advantages)
    r = ratio(logp, old).detach()
    limited = r.clamp(1 - clip_low, 1 + clip_high)
    return LossOutput(-limited * a * logp, (limited != r) & mask)


def topr(
    logprobs: Tensor, behaviour_logprobs: Tensor, prox_logprobs: Tensor, advantages: Tensor, mask: Tensor, **_: Any
) -> LossOutput:
    """-A log pi where A > 0, else -sg(clip(r, 0, 1)) A log pi: tapered off-policy REINFORCE (arXiv:2503.14286).

    The paper's sign is the reward's and its ratio the sequence's; here: the sign of the advantage given, r per token.
    """
    logp, old, a = kept(mask, logprobs, prox_logprobs, advantages)
    r = ratio(logp, old).detach()
    tapered = a <= 0
    return LossOutput(-torch.where(tapered, r.clamp(max=1.0), 1.0) * a * logp, tapered & (r > 1) & mask)


def kimi(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    tau: float = 0.1,
    **_: Any,
) -> LossOutput:
    """-A log pi + (tau/2) (log pi - log pi_prox)^2, per token.

    Kimi k1.5 (arXiv:2501.12599), where the square is of a whole sequence's log-ratio.
    """
    logp, old, a = kept(mask, logprobs, prox_logprobs, advantages)
    return LossOutput(-a * logp + tau / 2 * (logp - old).square(), torch.zeros_like(mask))


def gspo(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    segments: Tensor,
    num_segments: int,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    **_: Any,
) -> LossOutput:
    """-min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = exp(mean_t(log pi - log pi_prox)) over the mask.

    GSPO (arXiv:2507.18071). s is the trajectory's, on each of its tokens: aggregated by `sequence` it is the paper's
    loss. All tokens of a trajectory must be in the call; segments int64 [N] as in `segments.py`.
    """
    logp, old, a = kept(mask, logprobs, prox_logprobs, advantages)
    s = exp_clamped(segment_mean(logp - old, segments, num_segments, mask))[segments]
    return _clip(s, a, clip_low, clip_high, None)


def gmpo(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    segments: Tensor,
    num_segments: int,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
    **_: Any,
) -> LossOutput:
    """-s A, s = exp(mean_t d_t), d = log pi - log pi_prox, at most clip_high if A > 0, at least -clip_low if A < 0.

    GMPO (arXiv:2507.20673): the geometric mean of clipped ratios, whose bounds are those of log r. s is the
    trajectory's, on each of its tokens: aggregated by `sequence` it is the paper's loss. All tokens of a trajectory
    must be in the call; segments int64 [N] as in `segments.py`.
    """
    logp, old, a = kept(mask, logprobs, prox_logprobs, advantages)
    d = logp - old
    clipped = ((a > 0) & (d > clip_high)) | ((a < 0) & (d < -clip_low))
    limited = torch.where(clipped, d.detach().clamp(-clip_low, clip_high), d)
    s = exp_clamped(segment_mean(limited, segments, num_segments, mask))[segments]
    return LossOutput(-s * a, clipped)


def clip_cov(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    cov_band: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    **_: Any,
) -> LossOutput:
    """ppo, and 0 on the tokens of cov_band, bool [N], from `masks.cov_band`. Clip-Cov (arXiv:2505.22617)."""
    logp, old, a = kept(mask, logprobs, prox_logprobs, advantages)
    out = _clip(ratio(logp, old), a, clip_low, clip_high, None)
    return LossOutput(torch.where(cov_band, 0.0, out.per_token), (out.clipped | cov_band) & mask)


def kl_cov(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    cov_top: Tensor,
    beta: float = 1.0,
    **_: Any,
) -> LossOutput:
    """-r A, without a clip, + beta |log pi - log pi_prox| on the tokens of cov_top, bool [N], from `masks.cov_top`.

    KL-Cov (arXiv:2505.22617), with the estimate of the KL that its authors' code has.
    """
    logp, old, a = kept(mask, logprobs, prox_logprobs, advantages)
    penalty = torch.where(cov_top, beta * (logp - old).abs(), 0.0)
    return LossOutput(-ratio(logp, old) * a + penalty, torch.zeros_like(mask))


def m2po(
    logprobs: Tensor, behaviour_logprobs: Tensor, prox_logprobs: Tensor, advantages: Tensor, mask: Tensor, **_: Any
) -> LossOutput:
    """-r A, without a clip, on the tokens of a mask from `masks.m2po_mask`. M2PO (arXiv:2510.01161)."""
    logp, old, a = kept(mask, logprobs, prox_logprobs, advantages)
    return LossOutput(-ratio(logp, old) * a, torch.zeros_like(mask))
