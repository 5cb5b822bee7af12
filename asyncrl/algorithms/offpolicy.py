"""How far the trained tokens are from the policy being trained: always measured, whatever the correction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from asyncrl.algorithms.base import LOG_RATIO_LIMIT


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
    kl_k1: float = 0.0
    """sum of k1 = -d: unbiased too, of higher variance, and negative where the tokens became likelier."""
    masked: float = 0.0
    """tokens that a mask or a rejection left out."""
    same_tokens: float = 0.0
    """tokens sampled by the very weights that logp is of."""
    same_gap: float = 0.0
    """sum of |logp - logp_beh| over those."""

    def __add__(self, other: OffPolicySums) -> OffPolicySums:
        return OffPolicySums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def metrics(self) -> dict[str, float | None]:
        """offpolicy/*: mean gap in nats, effective sample size as a share of tokens, shares; None without tokens."""
        names = ("logprob_gap", "ess", "clip_fraction", "kl", "kl_k1", "masked_fraction")
        same = {"offpolicy/logprob_gap_age0": self.same_gap / self.same_tokens if self.same_tokens else None}
        if not self.tokens:
            return {f"offpolicy/{name}": None for name in names} | same
        sums = (self.gap, self.weight**2 / self.weight_squared, self.affected, self.kl, self.kl_k1, self.masked)
        return {f"offpolicy/{name}": value / self.tokens for name, value in zip(names, sums, strict=True)} | same


def off_policy_sums(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    affected: Tensor,
    masked: Tensor | None = None,
    same_weights: Tensor | None = None,
) -> OffPolicySums:
    """Diagnostics of one micro-batch; logprobs float [N] of pi before the update, affected, masked and same_weights
    (tokens sampled by the weights that logprobs are of) bool [N].

    An engine without log-probs gives NaN: such a batch has no off-policy diagnostics.
    """
    known = ~behaviour_logprobs.isnan()
    if not bool(known.any()):
        return OffPolicySums()
    d = (logprobs.double() - behaviour_logprobs.double())[known].clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    w = d.exp()
    return OffPolicySums(
        tokens=float(known.sum()),
        gap=float(d.abs().sum()),
        weight=float(w.sum()),
        weight_squared=float(w.square().sum()),
        kl=float((w - 1 - d).sum()),
        affected=float(affected[known].sum()),
        kl_k1=float(-d.sum()),
        masked=0.0 if masked is None else float(masked[known].sum()),
        same_tokens=0.0 if same_weights is None else float(same_weights[known].sum()),
        same_gap=0.0 if same_weights is None else float(d[same_weights[known]].abs().sum()),
    )
