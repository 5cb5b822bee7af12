"""Policy losses per trained token. Pure functions of float32 tensors [N] (N trained tokens of a micro-batch).

Notation (Schulman et al., arXiv:1707.06347; Hilton et al., arXiv:2110.00641): pi is the policy being optimised,
pi_prox the "old" policy of the ratio r = pi/pi_prox, pi_beh the one that sampled the token, A the advantage.
The caller sums `per_token` under its declared aggregation; corrections multiply it (see `corrections.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to this before exp: e^20 = 4.9e8 is finite in fp32, with room for its square."""


@dataclass(frozen=True)
class LossOutput:
    per_token: torch.Tensor
    """float32 [N]: loss of each token, with gradient."""
    clipped: torch.Tensor
    """bool [N]: tokens whose gradient the clipping removed."""


Loss = Callable[..., LossOutput]
"""loss(logprobs, behaviour_logprobs, prox_logprobs, advantages, mask, **coefficients) -> LossOutput."""


def ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    """exp(logp - logp_old) with the log-ratio clamped."""
    return torch.exp((logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def reinforce(
    logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    prox_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    **_: float,
) -> LossOutput:
    """-A log pi (Williams 1992). Uses neither behaviour nor proximal log-probs."""
    return LossOutput(-advantages * logprobs, torch.zeros_like(mask))


def ppo(
    logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    prox_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    **_: float,
) -> LossOutput:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = pi/pi_prox."""
    r = ratio(logprobs, prox_logprobs)
    unclipped = r * advantages
    limited = r.clamp(1 - clip_low, 1 + clip_high) * advantages
    return LossOutput(-torch.minimum(unclipped, limited), (limited < unclipped) & mask)


def decoupled_ppo(
    logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    prox_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    **_: float,
) -> LossOutput:
    """(pi_prox/pi_beh) x ppo: the trust region is around pi_prox, data come from pi_beh (AReaL, arXiv:2505.24298)."""
    inner = ppo(
        logprobs,
        behaviour_logprobs,
        prox_logprobs,
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
    )
    weight = ratio(prox_logprobs, behaviour_logprobs).detach()
    return LossOutput(weight * inner.per_token, inner.clipped)


LOSSES: dict[str, Loss] = {"ppo": ppo, "decoupled_ppo": decoupled_ppo, "reinforce": reinforce}
