"""Importance weights for tokens that another policy, or another engine, sampled; and what is always measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from asyncrl.algorithms.losses import LOG_RATIO_LIMIT, ratio


def truncated_weights(prox_logprobs: torch.Tensor, behaviour_logprobs: torch.Tensor, cap: float) -> torch.Tensor:
    """min(pi_prox/pi_beh, cap) per token, [N] -> [N], no gradient: TIS (Yao et al. 2025), V-trace's rho before it."""
    return ratio(prox_logprobs, behaviour_logprobs).clamp(max=cap).detach()


@dataclass(frozen=True)
class OffPolicySums:
    """Sums over trained tokens, so that micro-batches and ranks add up exactly; means only at the end."""

    tokens: float = 0.0
    gap: float = 0.0
    """sum of |logp - logp_beh|."""
    weight: float = 0.0
    """sum of w = pi/pi_beh."""
    weight_squared: float = 0.0
    kl: float = 0.0
    """sum of k3 = e^d - 1 - d with d = log pi - log pi_beh: an unbiased estimate of KL(pi_beh || pi)."""
    affected: float = 0.0
    """tokens that clipping removed or truncation cut."""

    def __add__(self, other: OffPolicySums) -> OffPolicySums:
        return OffPolicySums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def metrics(self) -> dict[str, float | None]:
        """offpolicy/*: mean gap in nats, effective sample size as a share of tokens, shares; None without tokens."""
        if not self.tokens:
            return dict.fromkeys(("offpolicy/logprob_gap", "offpolicy/ess", "offpolicy/clip_fraction", "offpolicy/kl"))
        return {
            "offpolicy/logprob_gap": self.gap / self.tokens,
            "offpolicy/ess": self.weight**2 / (self.tokens * self.weight_squared),
            "offpolicy/clip_fraction": self.affected / self.tokens,
            "offpolicy/kl": self.kl / self.tokens,
        }


def off_policy_sums(logprobs: torch.Tensor, behaviour_logprobs: torch.Tensor, affected: torch.Tensor) -> OffPolicySums:
    """Diagnostics of one micro-batch; logprobs float [N] of pi before the update, affected bool [N].

    An engine without log-probs gives NaN: such a batch has no off-policy diagnostics.
    """
    known = ~behaviour_logprobs.isnan()
    if not bool(known.any()):
        return OffPolicySums()
    d = (logprobs - behaviour_logprobs)[known].double().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    w = d.exp()
    return OffPolicySums(
        tokens=float(known.sum()),
        gap=float(d.abs().sum()),
        weight=float(w.sum()),
        weight_squared=float(w.square().sum()),
        kl=float((w - 1 - d).sum()),
        affected=float(affected[known].sum()),
    )
