"""Which tokens of a batch are treated apart because of what they are: too far off policy, of little entropy, or those
that take the entropy away."""

from __future__ import annotations

import torch
from torch import Tensor

from asyncrl.algorithms.base import promote


def m2po_mask(logprobs: Tensor, behaviour_logprobs: Tensor, advantages: Tensor, tau: float = 0.04) -> Tensor:
    """Tokens to train on, bool [N], from the whole batch: M2PO's second-moment mask (arXiv:2510.01161).

    d = log pi - log pi_beh and T = {A > 0, d > 0} or {A < 0, d < 0}. While the mean of d^2 over what is kept of T
    exceeds tau, the largest d^2 goes (of equal ones the later token). That is the longest prefix of d^2 in
    ascending order with a mean of at most tau. Tokens outside T always stay.
    """
    d = (promote(logprobs) - promote(behaviour_logprobs)).detach().double()
    removable = ((advantages > 0) & (d > 0)) | ((advantages < 0) & (d < 0))
    ascending, order = torch.where(removable, d.square(), torch.inf).sort(stable=True)
    rank = torch.arange(1, len(d) + 1, device=d.device)
    num_kept = torch.where(ascending.cumsum(0) / rank <= tau, rank, 0).amax() if len(d) else 0
    keep = torch.empty_like(removable)
    keep[order] = rank <= num_kept
    return keep | ~removable


def covariances(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """(log pi - mean)(A - mean) of each token, float64 [N]: how much a step on it lowers the entropy.

    The entropy mechanism (arXiv:2505.22617). Means over the tokens of mask, bool [N]; -inf outside it.
    """
    x, a = logprobs.detach().double(), advantages.detach().double()
    number = mask.sum().clamp(min=1)
    means = (torch.where(mask, v, 0.0).sum() / number for v in (x, a))
    product = (x - next(means)) * (a - next(means))
    return torch.where(mask, product, -torch.inf)


def cov_top(logprobs: Tensor, advantages: Tensor, mask: Tensor, share: float) -> Tensor:
    """Of the tokens of mask the share with the largest covariances, rounded down, at least one, bool [N] (KL-Cov)."""
    found = torch.zeros_like(mask)
    if mask.any():
        order = covariances(logprobs, advantages, mask).sort(descending=True, stable=True).indices
        found[order[: _number(mask, share)]] = True
    return found


def cov_band(logprobs: Tensor, advantages: Tensor, mask: Tensor, share: float, low: float, high: float) -> Tensor:
    """As many tokens, but any of those with covariances between low and high, bool [N] (Clip-Cov).

    Where more lie there, the paper draws by chance; here they are evenly spread over the batch, so that the same batch
    gives the same tokens.
    """
    found = torch.zeros_like(mask)
    c = covariances(logprobs, advantages, mask)
    inside = ((c > low) & (c < high)).nonzero()[:, 0]
    number = min(_number(mask, share), len(inside))
    found[inside[torch.arange(number, device=mask.device) * len(inside) // max(number, 1)]] = True
    return found


def _number(mask: Tensor, share: float) -> int:
    return max(int(share * int(mask.sum())), 1)


def entropy_mask(entropies: Tensor, groups: Tensor, num_groups: int, quantile: float = 0.2) -> Tensor:
    """Tokens (or steps) whose entropy is at least their group's quantile, bool [N]; ties stay (DART's entropy mask).

    entropies: float [N] in nats; groups: int64 [N], 0..num_groups-1, in any order. The quantile interpolates
    linearly between the sorted values, so that what stays starts at the one of index ceil(quantile (n - 1)).
    """
    entropies = entropies.detach()
    by_value = entropies.argsort(stable=True)
    order = by_value[groups[by_value].argsort(stable=True)]
    counts = torch.bincount(groups, minlength=num_groups)
    # Less than one part in 1e9 above a whole number is rounding: 0.55 x 100 is 55.00000000000001.
    first_kept = (quantile * (counts - 1).clamp(min=0).double() - 1e-9).ceil().long()
    thresholds = (counts.cumsum(0) - counts + first_kept)[groups]
    return entropies >= entropies[order[thresholds]]
