"""Micro-batches of all ranks: every sample once, under the budget, and no rank waits for another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.rollout.trajectory import Trajectory
from asyncrl.trainer.balance import EVEN, split
from asyncrl.trainer.packing import TrainSample, pack

WIDTH = 64


def sample(tokens: np.ndarray, group: int) -> TrainSample:
    mask = np.arange(len(tokens)) > 0
    nothing = np.zeros(len(tokens))
    versions, logprobs = nothing.astype(np.int32), nothing.astype(np.float32)
    return TrainSample(
        Trajectory(tokens.astype(np.int32), versions, logprobs, mask, 1.0, "stop"), group, 1.0, 1.0, mask
    )


def groups(rng: np.random.Generator, number: int, size: int, prompt: int, lengths: np.ndarray) -> list[TrainSample]:
    samples = []
    for group in range(number):
        start = rng.integers(3, 10_000, prompt)
        for length in rng.choice(lengths, size):
            samples.append(sample(np.concatenate([start, rng.integers(3, 10_000, length)]), group))
    return samples


def tokens_of(part: list[TrainSample]) -> int:
    return pack(part, torch.device("cpu")).tokens.numel()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(1, 5), st.integers(1, 4), st.integers(50, 300))
def test_every_sample_once_under_the_budget_and_as_many_passes_for_each_rank(
    seed: int, number: int, size: int, ranks: int, budget: int
) -> None:
    samples = groups(np.random.default_rng(seed), number, size, 7, np.arange(1, 40))
    shares = split(samples, budget, WIDTH, ranks)
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1
    assert sorted(id(s) for share in shares for part in share for s in part) == sorted(map(id, samples))
    assert all(tokens_of(part) <= budget for share in shares for part in share if part)
    assert shares == split(samples, budget, WIDTH, ranks)


def test_halves_that_share_too_little_are_cut_again() -> None:
    """A tree may be larger with a member less, whose beginning then is shared by too few."""
    rng = np.random.default_rng(122)
    size, ranks, budget = int(rng.integers(1, 6)), int(rng.integers(1, 5)), int(rng.integers(50, 120))
    samples = groups(rng, int(rng.integers(1, 4)), size, 7, np.arange(1, 40))
    shares = split(samples, budget, WIDTH, ranks)
    assert all(tokens_of(part) <= budget for share in shares for part in share if part)


def test_one_rank_makes_few_micro_batches_of_whole_groups() -> None:
    samples = groups(np.random.default_rng(0), 20, 8, 30, np.arange(5, 30))
    (parts,) = split(samples, 1000, WIDTH)
    assert len(parts) <= 1 + sum(tokens_of(part) for part in parts) // 900
    where = [{s.group for s in part} for part in parts]
    assert sum(map(len, where)) == 20


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_are_even_on_long_tailed_lengths(ranks: int) -> None:
    """A group of answers is up to 30 times as long as another."""
    rng = np.random.default_rng(1)
    lengths = np.minimum(20 * (1 + rng.pareto(1.2, 1000)), 600).astype(int)
    samples = groups(rng, 16, 8, 50, lengths)
    shares = split(samples, 4096, WIDTH, ranks)

    def cost(part: list[TrainSample]) -> float:
        tree = pack(part, torch.device("cpu")).tree
        return len(tree.ends) + sum((e - s) * (b - s) for s, e, b in tree.nodes) / (6 * WIDTH)

    costs = np.array([[cost(part) if part else 0.0 for part in share] for share in shares])
    assert costs.max(axis=0).sum() / costs.mean(axis=0).sum() <= EVEN
    assert costs.sum(axis=1).max() / costs.sum(axis=1).mean() <= EVEN


def test_a_trajectory_over_the_budget_is_an_error() -> None:
    samples = groups(np.random.default_rng(0), 2, 2, 10, np.array([30]))
    with pytest.raises(ValueError, match=r"a trajectory of 40 tokens is over trainer\.tokens_per_microbatch \(39\)"):
        split(samples, 39, WIDTH)
