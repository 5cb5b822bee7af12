"""Advantages: of one group from its rewards, [n] -> [n]; of packed tokens; and shaped rewards.

A failed reward never reaches these functions (I7): the caller leaves the trajectory out, so that it counts
neither in the mean nor in the deviation. A group of one, or of equal rewards, gets zeros, never NaN.
fp32 inside (float64 stays float64). Nothing here has a gradient to pass on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asyncrl.algorithms.base import kept, promote
from asyncrl.algorithms.segments import segment_sum

_STD_EPSILON = 1e-6


def grpo(rewards: Tensor, epsilon: float = _STD_EPSILON) -> Tensor:
    """(R - mean) / (std + epsilon), population std. DeepSeekMath (arXiv:2402.03300), outcome supervision."""
    return dr_grpo(rewards) / (promote(rewards).std(correction=0) + epsilon)


def dr_grpo(rewards: Tensor) -> Tensor:
    """R - mean, without the division that favours easy and hard tasks. Dr. GRPO (arXiv:2503.20783)."""
    rewards = promote(rewards)
    return torch.zeros_like(rewards) if _all_equal(rewards) else rewards - rewards.mean()


def rloo(rewards: Tensor) -> Tensor:
    """R_i - mean of the others = n/(n-1) (R_i - mean). Leave-one-out REINFORCE (arXiv:2402.14740)."""
    n = rewards.numel()
    return dr_grpo(rewards) * (n / max(n - 1, 1))


def best_of_n(rewards: Tensor) -> Tensor:
    """1 for the first best, 0 for the others, zeros if all are equal: with `reinforce`, SFT on the best of n."""
    rewards = promote(rewards)
    best = rewards == rewards.max()
    first = best & (best.cumsum(0) == 1)
    return torch.zeros_like(rewards) if _all_equal(rewards) else first.to(rewards.dtype)


def none(rewards: Tensor) -> Tensor:
    """The rewards as they are, for losses and normalisations that compare them elsewhere. Not zero if all are equal."""
    return promote(rewards)


def less_baseline(rewards: Tensor, baseline: float = 0.0) -> Tensor:
    """R - baseline, a number that the member's own reward has no part in, or a small one: of the batch, or of the task
    (`trainer/baseline.py`). For groups of one. Not zero if all are equal."""
    return promote(rewards) - baseline


def of_critic(rewards: Tensor) -> Tensor:
    """Zeros: those of the tokens come from a critic, once it has seen them (`gae`)."""
    return torch.zeros_like(promote(rewards))


def _all_equal(x: Tensor) -> bool:
    """Not by the deviation, which rounding leaves above zero for equal values."""
    return bool((x == x[0]).all())


def normalise(advantages: Tensor, mask: Tensor) -> Tensor:
    """(A - mean) / (std + 1e-6) over the tokens of mask [N] of the whole batch, [N]; zero outside the mask.

    REINFORCE++ (arXiv:2501.03262), population std. Zeros if all are equal or the mask is empty.
    """
    (a,) = kept(mask, advantages.detach())
    chosen = a[mask]
    if not len(chosen) or _all_equal(chosen):
        return torch.zeros_like(a)
    return torch.where(mask, (a - chosen.mean()) / (chosen.std(correction=0) + _STD_EPSILON), 0.0)


def kl_in_reward(advantages: Tensor, kl: Tensor, segments: Tensor, num_segments: int, coef: float) -> Tensor:
    """A_t - coef x sum of kl_t' over t' >= t of the same trajectory, [N]: KL as a cost per token, undiscounted.

    REINFORCE++ (arXiv:2501.03262), InstructGPT before it (arXiv:2203.02155). kl float [N] from `kl_estimate`, k1, and
    zero where a token does not count; segments int64 [N] as in `segments.py`.
    """
    # Sums over the whole batch cancel each other: in float64, or a long batch would lose its small terms.
    cost = kl.detach().double()
    totals = segment_sum(cost, segments, num_segments)
    from_here = cost.flip(0).cumsum(0).flip(0)
    later_segments = totals.flip(0).cumsum(0).flip(0) - totals
    a = promote(advantages)
    return a - coef * (from_here - later_segments[segments]).to(a.dtype)


def less_divergence(advantages: Tensor, behaviour: Tensor, teacher: Tensor, coef: float) -> Tensor:
    """A_t - coef (log pi_t - log pi_teacher_t), [N]: the reverse KL from a teacher as a cost of each token alone, not
    of those before it. On-Policy Distillation (Thinking Machines, 2025); k1 of `kl_estimate`.

    behaviour, teacher float [N]: log-probs of the sampled tokens; teacher NaN where there is none: there A_t stays.
    """
    a = promote(advantages)
    return a - coef * torch.where(teacher.isnan(), 0.0, behaviour - teacher).to(a.dtype)


def gae(
    values: Tensor, rewards: Tensor, segments: Tensor, num_segments: int, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """(advantages [N], returns [N]): A_t = sum_k (gamma lam)^k delta_{t+k}, returns = A + V. GAE (arXiv:1506.02438).

    delta_t = r_t + gamma V_{t+1} - V_t. values float [N], V before each token; rewards float [M]: a trajectory's
    reward is on its last token, after which the value is 0. segments int64 [N] as in `segments.py`.
    """
    v, r = promote(values).detach(), promote(rewards).detach()
    if not len(v):
        return v, v
    counts = torch.bincount(segments, minlength=num_segments)
    tokens_after = (counts.cumsum(0) - 1)[segments] - torch.arange(len(v), device=v.device)
    last = tokens_after == 0
    delta = torch.where(last, r[segments], gamma * v.roll(-1)) - v
    padded = delta.new_zeros(int(counts.max()), num_segments)
    padded[tokens_after, segments] = delta
    for t in range(1, len(padded)):
        padded[t] += gamma * lam * padded[t - 1]
    a = padded[tokens_after, segments]
    return a, a + v


def overlong_penalty(lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    """What a long response adds to its reward, float32 [n]: DAPO's soft overlong punishment (arXiv:2503.14476).

    lengths [n] in tokens: 0 up to max_length - buffer, from there linearly down to -1 at max_length, -1 beyond.
    """
    if buffer == 0:
        return -(lengths > max_length).float()
    return ((max_length - buffer - promote(lengths)) / buffer).clamp(-1.0, 0.0)
