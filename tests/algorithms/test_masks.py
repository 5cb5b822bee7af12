"""M2PO's mask against the paper's loop, the entropy mask against numpy's percentiles, covariances in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from asyncrl.algorithms.masks import cov_band, cov_top, entropy_mask, m2po_mask


def naive(d: np.ndarray, advantages: np.ndarray, tau: float) -> np.ndarray:
    """Mask the largest d^2 of T, the last of equal ones, until the mean of what is left is at most tau."""
    removable = ((advantages > 0) & (d > 0)) | ((advantages < 0) & (d < 0))
    keep = np.ones(len(d), dtype=bool)
    while True:
        left = np.flatnonzero(removable & keep)
        if not len(left) or np.sum(d[left] ** 2) / len(left) <= tau:
            return keep
        squares = d[left] ** 2
        keep[left[np.flatnonzero(squares == squares.max())[-1]]] = False


@pytest.mark.parametrize("ties", [False, True])
def test_m2po_mask_is_the_naive_loop(ties: bool) -> None:
    rng = np.random.default_rng(ties)
    taus = (1 / 64, 1 / 32, 1 / 16, 1.0)
    num_masked = num_kept = 0
    for case in range(500):
        n = int(rng.integers(0, 40))
        d = rng.normal(0, rng.choice([0.1, 0.3, 1.0]), n)
        if ties:  # in eighths, so that squares and their sums are exact, and the mean is often exactly tau
            d = np.round(d * 8) / 8
        behaviour = np.round(rng.normal(-3, 1, n) * 8) / 8
        advantages, tau = rng.choice([-1.0, 0.0, 0.5], n), taus[case % 4]
        behaviour_t, current = torch.tensor(behaviour), torch.tensor(behaviour + d)
        d = (current - behaviour_t).numpy()
        mask = m2po_mask(current, behaviour_t, torch.tensor(advantages), tau).numpy()
        np.testing.assert_array_equal(mask, naive(d, advantages, tau))

        removable = ((advantages > 0) & (d > 0)) | ((advantages < 0) & (d < 0))
        assert mask[~removable].all()
        kept, gone = d[mask & removable] ** 2, d[~mask] ** 2
        assert not len(kept) or kept.mean() <= tau * (1 + 1e-12)
        if len(gone):  # maximal: the smallest that went would not have fitted
            assert (kept.sum() + gone.min()) / (len(kept) + 1) > tau
        elif len(kept):
            assert kept.mean() <= tau
        num_masked, num_kept = num_masked + len(gone), num_kept + len(kept)
    assert min(num_masked, num_kept) > 500


def test_m2po_mask_is_a_no_op_under_tau_whatever_lies_outside_t() -> None:
    d = torch.tensor([0.19, -0.2, 5.0, -5.0, 7.0, 0.0])
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0, 0.0, 1.0])
    assert m2po_mask(d, torch.zeros(6), advantages).all()


def test_m2po_mask_without_behaviour_logprobs_removes_nothing() -> None:
    assert m2po_mask(torch.zeros(3), torch.full((3,), torch.nan), torch.ones(3)).all()


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.2, 0.5, 1.0])
def test_entropy_mask_is_numpys_percentile_per_group(quantile: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        n, num_groups = int(rng.integers(0, 60)), 5
        groups = rng.integers(0, num_groups - 1, n)  # the last stays empty
        entropies = rng.integers(0, 6, n) / 4 if rng.random() < 0.5 else rng.random(n)
        mask = entropy_mask(torch.tensor(entropies), torch.tensor(groups, dtype=torch.int64), num_groups, quantile)
        expected = np.zeros(n, dtype=bool)
        for g in range(num_groups):
            own = groups == g
            if own.any():
                expected[own] = entropies[own] >= np.quantile(entropies[own], quantile) - 1e-12
        np.testing.assert_array_equal(mask.numpy(), expected)


def test_entropy_mask_keeps_ties() -> None:
    assert entropy_mask(torch.full((10,), 0.3), torch.zeros(10, dtype=torch.int64), 1).all()
    entropies = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.9, 0.9])
    assert entropy_mask(entropies, torch.zeros(6, dtype=torch.int64), 1).tolist() == [False] + [True] * 5


def test_entropy_mask_keeps_the_value_at_the_quantile_itself() -> None:
    entropies = torch.arange(101) / 7
    assert entropy_mask(entropies, torch.zeros(101, dtype=torch.int64), 1, 0.55).sum() == 46


# -- covariances


def by_hand(logprobs: list[float], advantages: list[float], mask: list[bool]) -> dict[int, float]:
    inside = [i for i, m in enumerate(mask) if m]
    lp, a = (math.fsum(x[i] for i in inside) / len(inside) for x in (logprobs, advantages))
    return {i: (logprobs[i] - lp) * (advantages[i] - a) for i in inside}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [1e-6, 0.02, 1.0])
def test_cov_top_takes_the_largest_covariances_of_the_tokens_that_count(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    lp, a, mask = -rng.exponential(1.0, 300), rng.normal(0, 1, 300), rng.random(300) < 0.8
    values = by_hand(lp.tolist(), a.tolist(), mask.tolist())
    number = max(int(share * len(values)), 1)
    largest = sorted(values, key=lambda i: -values[i])[:number]
    lp[~mask] = math.nan
    found = cov_top(torch.tensor(lp), torch.tensor(a), torch.tensor(mask), share)
    assert found.nonzero()[:, 0].tolist() == sorted(largest)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("share", "low", "high"), [(0.05, 0.5, 2.0), (0.9, 0.5, 2.0), (0.5, 50.0, 60.0)])
def test_cov_band_takes_only_tokens_of_the_band_and_no_more_than_the_share(
    seed: int, share: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(seed)
    lp, a, mask = -rng.exponential(1.0, 300), rng.normal(0, 1, 300), rng.random(300) < 0.8
    values = by_hand(lp.tolist(), a.tolist(), mask.tolist())
    inside = [i for i in values if low < values[i] < high]
    given = torch.tensor(lp), torch.tensor(a), torch.tensor(mask)
    found = cov_band(*given, share, low, high)
    assert set(found.nonzero()[:, 0].tolist()) <= set(inside)
    assert int(found.sum()) == min(int(share * len(values)), len(inside))
    assert torch.equal(found, cov_band(*given, share, low, high))


def test_nothing_is_chosen_where_no_token_counts() -> None:
    nothing = torch.zeros(4, dtype=torch.bool)
    given = torch.zeros(4), torch.ones(4), nothing
    assert not cov_top(*given, 0.5).any()
    assert not cov_band(*given, 0.5, -9.0, 9.0).any()
