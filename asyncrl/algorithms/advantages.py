"""Advantages of one group from its rewards. Pure functions of float32 tensors [n].

A failed reward never reaches these functions (I7): the caller leaves the trajectory out, so that it counts
neither in the mean nor in the deviation. A group of one, or of equal rewards, gets zeros, never NaN.
"""

from __future__ import annotations

import torch


def grpo(rewards: torch.Tensor, epsilon: float = 1e-6) -> torch.Tensor:
    """(R - mean) / (std + epsilon), population std. DeepSeekMath (arXiv:2402.03300), outcome supervision."""
    centred = rewards - rewards.mean()
    if bool((rewards == rewards[0]).all()):
        return torch.zeros_like(rewards)
    return centred / (rewards.std(correction=0) + epsilon)


def dr_grpo(rewards: torch.Tensor) -> torch.Tensor:
    """R - mean, without the division that favours easy and hard tasks. Dr. GRPO (arXiv:2503.20783)."""
    if bool((rewards == rewards[0]).all()):
        return torch.zeros_like(rewards)
    return rewards - rewards.mean()


def rloo(rewards: torch.Tensor) -> torch.Tensor:
    """R_i - mean of the others = n/(n-1) (R_i - mean). Leave-one-out REINFORCE (arXiv:2402.14740)."""
    n = rewards.numel()
    if n == 1:
        return torch.zeros_like(rewards)
    return dr_grpo(rewards) * (n / (n - 1))


ADVANTAGES = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}
