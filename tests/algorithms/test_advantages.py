"""Advantages against sums written out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms.advantages import (
    best_of_n,
    dr_grpo,
    gae,
    grpo,
    kl_in_reward,
    none,
    normalise,
    overlong_penalty,
    rloo,
)
from asyncrl.registry import ADVANTAGES

rewards = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=12)
COMPARING = sorted(name for name, entry in ADVANTAGES.items() if entry.compares)


@given(rewards)
def test_formulas(values: list[float]) -> None:
    r = torch.tensor(values, dtype=torch.float32)
    n, mean = len(values), math.fsum(values) / len(values)
    assert none(r).tolist() == values
    if len(set(values)) == 1:
        for name in COMPARING:
            assert ADVANTAGES[name].load()(r).tolist() == [0.0] * n
        return
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / n)
    assert best_of_n(r).tolist() == [float(i == values.index(max(values))) for i in range(n)]
    torch.testing.assert_close(rloo(r), dr_grpo(r) * n / (n - 1))
    for i, x in enumerate(values):
        others = [y for j, y in enumerate(values) if j != i]
        assert float(dr_grpo(r)[i]) == pytest.approx(x - mean, abs=1e-4)
        assert float(rloo(r)[i]) == pytest.approx(x - math.fsum(others) / (n - 1), abs=1e-4)
        if std > 1e-3:
            assert float(grpo(r)[i]) == pytest.approx((x - mean) / (std + 1e-6), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", COMPARING)
def test_group_of_one_has_no_advantage(name: str) -> None:
    assert ADVANTAGES[name].load()(torch.tensor([3.0])).tolist() == [0.0]


@pytest.mark.parametrize("name", ADVANTAGES)
def test_bf16_rewards_are_reduced_in_fp32(name: str) -> None:
    low = torch.tensor([0.1, 0.7, 0.3]).bfloat16()
    assert torch.equal(ADVANTAGES[name].load()(low), ADVANTAGES[name].load()(low.float()))


def test_grpo_of_tiny_differences_is_finite() -> None:
    assert torch.isfinite(grpo(torch.tensor([1.0, 1.0 + 1e-7, 1.0]))).all()


# -- of the whole batch


def test_normalise(batch: dict[str, Any]) -> None:
    mask = batch["mask"]
    a = torch.where(mask, batch["advantages"] * 3 + 7, math.nan)
    result, values = normalise(a, mask), a[mask].tolist()
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / len(values))
    assert result[mask].tolist() == pytest.approx([(x - mean) / (std + 1e-6) for x in values])
    assert not result[~mask].any()


def test_normalise_without_variance_or_tokens_is_zero() -> None:
    equal = torch.full((7,), 0.1)
    for mask in (torch.ones(7).bool(), torch.zeros(7).bool(), torch.arange(7) == 3):
        assert normalise(equal, mask).tolist() == [0.0] * 7
    assert normalise(torch.zeros(0), torch.zeros(0).bool()).shape == (0,)


def test_kl_in_reward_against_a_loop(batch: dict[str, Any]) -> None:
    a, segments = batch["advantages"], batch["segments"]
    kl = batch["prox_logprobs"] - batch["behaviour_logprobs"]
    expected = a.clone()
    for i in segments.unique():
        own = (segments == i).nonzero()[:, 0]
        costs = kl[own].tolist()
        expected[own] -= 0.3 * torch.tensor([math.fsum(costs[t:]) for t in range(len(costs))], dtype=torch.float64)
    result = kl_in_reward(a, kl, segments, batch["num_segments"], 0.3)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(kl_in_reward(a, kl, segments, batch["num_segments"], 0.0), a)


def test_kl_of_a_huge_trajectory_does_not_drown_another() -> None:
    kl, segments = torch.tensor([1e-3, 2e-3, 4e8]), torch.tensor([0, 0, 1])
    assert kl_in_reward(torch.zeros(3), kl, segments, 2, 1.0)[:2].tolist() == pytest.approx([-3e-3, -2e-3], rel=1e-3)


# -- critic


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.95), (1.0, 0.0), (0.99, 0.5)])
def test_gae_against_its_definition(gamma: float, lam: float, batch: dict[str, Any]) -> None:
    """A_t = sum over k of (gamma lam)^k delta_{t+k}: the sum itself, not its recursion."""
    values, segments, m = batch["advantages"], batch["segments"], batch["num_segments"]
    final = torch.rand(m, dtype=torch.float64)
    advantages, returns = gae(values, final, segments, m, gamma, lam)
    for i in segments.unique().tolist():
        v = values[segments == i].tolist()
        n = len(v)
        delta = [(gamma * v[t + 1] if t + 1 < n else float(final[i])) - v[t] for t in range(n)]
        powers = [(gamma * lam) ** k for k in range(n)]
        expected = [math.fsum(p * d for p, d in zip(powers, delta[t:], strict=False)) for t in range(n)]
        assert advantages[segments == i].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    torch.testing.assert_close(returns, advantages + values)
    if gamma == lam == 1:
        torch.testing.assert_close(advantages, final[segments] - values)


def test_gae_without_tokens() -> None:
    advantages, returns = gae(torch.zeros(0), torch.zeros(2), torch.zeros(0, dtype=torch.int64), 2, 1.0, 1.0)
    assert advantages.shape == returns.shape == (0,)


# -- length


def test_overlong_penalty() -> None:
    lengths = torch.tensor([0, 80, 81, 90, 100, 101, 5000])
    assert overlong_penalty(lengths, 100, 20).tolist() == pytest.approx([0, 0, -0.05, -0.5, -1, -1, -1])
    assert overlong_penalty(lengths, 100, 0).tolist() == [0, 0, 0, 0, 0, -1, -1]
