"""Packed attention is causal attention of each trajectory alone, forwards and backwards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.rollout.trajectory import Trajectory
from asyncrl.trainer.attention import packed_attention
from asyncrl.trainer.packing import PackedBatch, TrainSample, pack

HEAD_DIM = 8
MODULE = torch.nn.Module()
FAMILIES = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(0, 6), min_size=1, max_size=4)), min_size=1, max_size=3
)
"""For each prompt its length and the lengths of its completions."""


def pack_families(families: list[tuple[int, list[int]]]) -> PackedBatch:
    samples = []
    for family, (num_prompt, completions) in enumerate(families):
        for num in completions:
            # Another token per family: equal prompts would be one prompt.
            tokens = np.array([family] * num_prompt + [9] * num, np.int32)
            versions = np.array([-1] * num_prompt + [0] * num, np.int32)
            trajectory = Trajectory(tokens, versions, np.zeros(len(tokens), np.float32), versions >= 0, 1.0, "stop")
            samples.append(TrainSample(trajectory, 0, 1.0, 1.0, trajectory.loss_mask))
    return pack(samples, torch.device("cpu"))


def trajectory_paths(families: list[tuple[int, list[int]]]) -> list[list[int]]:
    """The row's tokens of each trajectory, worked out apart from `pack`: prompt once, completions after one another."""
    paths, end = [], 0
    for num_prompt, completions in families:
        prompt = list(range(end, end + num_prompt))
        end += num_prompt
        for num in completions:
            paths.append(prompt + list(range(end, end + num)))
            end += num
    return paths


def row(num_tokens: int, heads: int, kv_heads: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, h, num_tokens, HEAD_DIM, generator=generator, dtype=torch.float64).requires_grad_()
        for h in (heads, kv_heads, kv_heads)
    ]


def alone(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Textbook causal attention of one trajectory: [H, L, D] and [H_kv, L, D] -> [L, H, D]."""
    repeats = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0)
    length = query.shape[1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = (query @ key.transpose(1, 2) * scale).masked_fill(future, -math.inf).softmax(-1)
    return (weights @ value).transpose(0, 1)


def separate(tensors: list[torch.Tensor], paths: list[list[int]], num_tokens: int, scale: float) -> torch.Tensor:
    """[1, T, H, D]: each token of the row from the first trajectory it is part of."""
    outputs: dict[int, torch.Tensor] = {}
    for path in paths:
        out = alone(*(t[0][:, path] for t in tensors), scale)
        for place, token in enumerate(path):
            outputs.setdefault(token, out[place])
    return torch.stack([outputs[t] for t in range(num_tokens)])[None]


def assert_same(got: torch.Tensor, expected: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=got.dtype)
    ours = torch.autograd.grad((got * weights).sum(), tensors, retain_graph=True)
    theirs = torch.autograd.grad((expected * weights).sum(), tensors)
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(FAMILIES, st.sampled_from([(4, 4), (4, 2), (6, 2), (2, 1)]))
def test_packed_equals_separate(families: list[tuple[int, list[int]]], heads: tuple[int, int]) -> None:
    batch = pack_families(families)
    num_tokens = batch.tokens.shape[1]
    tensors = row(num_tokens, *heads)
    scale = 0.3
    got, weights = packed_attention(MODULE, *tensors, None, scaling=scale, paths=batch.paths, slots=batch.slots)
    assert weights is None
    assert got.shape == (1, num_tokens, heads[0], HEAD_DIM)
    assert got.is_contiguous()
    assert_same(got, separate(tensors, trajectory_paths(families), num_tokens, scale), tensors)


def test_without_paths_the_row_is_one_trajectory() -> None:
    tensors = row(7, 4, 2)
    got, _ = packed_attention(MODULE, *tensors, None, scaling=0.5)
    assert_same(got, separate(tensors, [list(range(7))], 7, 0.5), tensors)


def test_the_scale_is_by_default_that_of_the_head() -> None:
    tensors = row(5, 2, 2)
    got, _ = packed_attention(MODULE, *tensors, None)
    assert_same(got, separate(tensors, [list(range(5))], 5, HEAD_DIM**-0.5), tensors)


@pytest.mark.parametrize("changed", range(9))
def test_a_token_reaches_only_later_tokens_of_its_own_trajectories(changed: int) -> None:
    families = [(2, [2, 3]), (1, [1])]  # row: p p a a b b b | q c
    batch = pack_families(families)
    query, key, value = (t.detach() for t in row(9, 2, 1))
    before, _ = packed_attention(MODULE, query, key, value, None, paths=batch.paths, slots=batch.slots)
    key[0, :, changed] += 1
    value[0, :, changed] -= 1
    after, _ = packed_attention(MODULE, query, key, value, None, paths=batch.paths, slots=batch.slots)
    moved = {t for t in range(9) if not torch.equal(before[0, t], after[0, t])}
    expected = {t for path in trajectory_paths(families) if changed in path for t in path if t >= changed}
    assert moved == expected
