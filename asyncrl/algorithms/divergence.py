"""Losses whose trust region is a divergence of two policies in place of their ratio.

Of a token only the log-prob that was sampled is known under both policies: what is compared is two distributions of
two events, this token and any other, with p under pi_old and q under pi. Arguments as in `losses.py`; pi_prox is the
old policy, and in both papers that is the one that sampled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asyncrl.algorithms.base import LossOutput, kept, ratio
from asyncrl.algorithms.segments import segment_mean

_LEAST = 1e-6
"""Probabilities are kept this far from 0 and 1 in `binary_kl`, where their logarithms are not finite."""


def binary_tv(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """|p - q|, float [N]: the total variation of the two events."""
    return (logprobs.exp() - old_logprobs.exp()).abs()


def binary_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """KL(pi_old || pi) = p log(p/q) + (1 - p) log((1 - p)/(1 - q)) of the two events, in nats, float [N]."""
    p, q = (x.exp().clamp(_LEAST, 1 - _LEAST) for x in (old_logprobs, logprobs))
    return p * (p.log() - q.log()) + (1 - p) * ((-p).log1p() - (-q).log1p())


def dppo_tv(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    delta: float = 0.15,
    tis_cap: float = 20.0,
    **_: Any,
) -> LossOutput:
    """-M sg(min(r, tis_cap)) A log pi; M = 0 where the total variation exceeds delta and A moves pi further away.

    DPPO (arXiv:2602.04879), its binary approximation. Further away: A > 0 and r > 1, or A < 0 and r < 1.
    """
    logp, old, a = kept(mask, logprobs, prox_logprobs, advantages)
    return _masked(logp, old, a, binary_tv(logp.detach(), old) > delta, tis_cap, mask)


def dppo_kl(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    delta: float = 0.05,
    tis_cap: float = 20.0,
    **_: Any,
) -> LossOutput:
    """As `dppo_tv` with KL(pi_old || pi), in nats, in place of the total variation."""
    logp, old, a = kept(mask, logprobs, prox_logprobs, advantages)
    return _masked(logp, old, a, binary_kl(logp.detach(), old) > delta, tis_cap, mask)


def flash_reinforce(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    prox_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    segments: Tensor,
    num_segments: int,
    delta: float = 3e-3,
    **_: Any,
) -> LossOutput:
    """-sg(r) A log pi on the trajectories whose mean KL(pi_old || pi) over the mask is at most delta, else 0.

    FlashREINFORCE, without its filter by entropy. What is rejected still counts below the line, as there. r is not
    truncated. All tokens of a trajectory must be in the call; segments int64 [N] as in `segments.py`.
    """
    logp, old, a = kept(mask, logprobs, prox_logprobs, advantages)
    far = (segment_mean(binary_kl(logp.detach(), old), segments, num_segments, mask) > delta)[segments]
    per_token = torch.where(far, 0.0, -ratio(logp, old).detach() * a * logp)
    return LossOutput(per_token, far & mask)


def _masked(logp: Tensor, old: Tensor, a: Tensor, far: Tensor, cap: float, mask: Tensor) -> LossOutput:
    """far: bool [N], whether the trust region is left."""
    r = ratio(logp, old).detach()
    stopped = far & (((a > 0) & (r > 1)) | ((a < 0) & (r < 1)))
    per_token = torch.where(stopped, 0.0, -r.clamp(max=cap) * a * logp)
    return LossOutput(per_token, (stopped | (r > cap)) & mask)
