"""Advantages against sums written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms.advantages import ADVANTAGES, dr_grpo, grpo, rloo

rewards = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=12)


@given(rewards)
def test_formulas(values: list[float]) -> None:
    r = torch.tensor(values, dtype=torch.float32)
    n, mean = len(values), math.fsum(values) / len(values)
    if len(set(values)) == 1:
        for advantage in ADVANTAGES.values():
            assert advantage(r).tolist() == [0.0] * n
        return
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / n)
    for i, x in enumerate(values):
        others = [y for j, y in enumerate(values) if j != i]
        assert float(dr_grpo(r)[i]) == pytest.approx(x - mean, abs=1e-4)
        assert float(rloo(r)[i]) == pytest.approx(x - math.fsum(others) / (n - 1), abs=1e-4)
        if std > 1e-3:
            assert float(grpo(r)[i]) == pytest.approx((x - mean) / (std + 1e-6), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_group_of_one_has_no_advantage(name: str) -> None:
    assert ADVANTAGES[name](torch.tensor([3.0])).tolist() == [0.0]


def test_grpo_of_tiny_differences_is_finite() -> None:
    assert torch.isfinite(grpo(torch.tensor([1.0, 1.0 + 1e-7, 1.0]))).all()
