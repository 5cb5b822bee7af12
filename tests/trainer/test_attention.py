"""Attention over a prefix tree is causal attention of each trajectory alone, forwards and backwards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.trainer import attention
from asyncrl.trainer.attention import RowTree, tree_attention
from asyncrl.trainer.tree import prefix_tree

HEAD_DIM = 8
MODULE = torch.nn.Module()
SEQUENCES = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), min_size=1, max_size=6)
"""Of two tokens, so that beginnings are shared at several depths."""


def tree_of(sequences: list[list[int]]) -> tuple[RowTree, list[list[int]]]:
    """And the row's tokens of each sequence."""
    tree = prefix_tree([np.array(s) for s in sequences])
    return RowTree(torch.tensor(tree.depths), torch.tensor(tree.ends), tree.nodes), [p.tolist() for p in tree.paths]


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


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.integers(0, 30), st.sampled_from([(4, 4), (4, 2), (6, 2), (2, 1)]), st.sampled_from([0, 200]))
def test_a_tree_equals_its_sequences(
    sequences: list[list[int]], num_shared: int, heads: tuple[int, int], large: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_LARGE", large)
        check_equals_its_sequences([[0] * num_shared + s for s in sequences], heads)


def check_equals_its_sequences(sequences: list[list[int]], heads: tuple[int, int]) -> None:
    tree, paths = tree_of(sequences)
    num_tokens = len(tree.ends)
    tensors = row(num_tokens, *heads)
    got, weights = tree_attention(MODULE, *tensors, None, scaling=0.3, tree=tree)
    assert weights is None
    assert got.shape == (1, num_tokens, heads[0], HEAD_DIM)
    assert got.is_contiguous()
    assert_same(got, separate(tensors, paths, num_tokens, 0.3), tensors)


def test_bf16_is_joined_in_fp32() -> None:
    tree, _ = tree_of([[0] * 200 + [1] * n for n in (1, 60, 61, 300)] + [[0] * 100 + [1] * 50])
    exact = row(len(tree.ends), 6, 2)
    rounded = [t.detach().bfloat16().requires_grad_() for t in exact]
    expected = tree_attention(MODULE, *(t.detach().double().requires_grad_() for t in rounded), None, tree=tree)[0]
    got = tree_attention(MODULE, *rounded, None, tree=tree)[0]
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), expected, rtol=0.02, atol=0.02)
    doubles = [t.detach().double().requires_grad_() for t in rounded]
    tree_attention(MODULE, *doubles, None, tree=tree)[0].square().sum().backward()
    got.square().sum().backward()
    for ours, theirs in zip(rounded, doubles, strict=True):
        assert (ours.grad - theirs.grad).norm() < 0.02 * theirs.grad.norm()


def test_a_sliding_window_counts_positions_of_the_sequence() -> None:
    tree, paths = tree_of([[0] * 9 + [1] * 6, [0] * 9 + [2] * 3])
    query, key, value = (t.detach() for t in row(len(tree.ends), 2, 1))
    got, _ = tree_attention(MODULE, query, key, value, None, tree=tree, sliding_window=4)
    for path in paths:
        for place in range(len(path)):
            seen = path[max(0, place - 3) : place + 1]
            alone_there = alone(query[0][:, seen], key[0][:, seen], value[0][:, seen], HEAD_DIM**-0.5)[-1]
            torch.testing.assert_close(got[0, path[place]], alone_there)
    whole, _ = tree_attention(MODULE, query, key, value, None, tree=tree, sliding_window=len(tree.ends))
    torch.testing.assert_close(whole, tree_attention(MODULE, query, key, value, None, tree=tree)[0])


@pytest.mark.parametrize(
    ("window", "width", "why"), [(4, HEAD_DIM, "a sliding window"), (None, 4, "keys and values of different widths")]
)
def test_a_mask_of_the_whole_row_is_said_once(
    window: int | None, width: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    attention._say_dense.cache_clear()
    tree, _ = tree_of([[0] * 9 + [1] * 6, [0] * 9 + [2] * 3])
    query, key, value = (t.detach().float() for t in row(len(tree.ends), 2, 1))
    for _ in range(2):
        tree_attention(MODULE, query, key, value[..., :width], None, tree=tree, sliding_window=window)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("attention takes a mask of whole rows")
    assert why in said
    # The trial at load, in float64, is none of the training.
    attention._say_dense.cache_clear()
    tree_attention(MODULE, query.double(), key.double(), value.double(), None, tree=tree, sliding_window=4)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("window", [None, 1, 30, 200])
@pytest.mark.parametrize("lengths", [(150, 40, 90, 20), (128, 128, 128, 128), (600, 300, 500, 1), (3, 2, 2, 2)])
def test_the_mask_for_flex_attention_is_that_of_the_tree(lengths: tuple[int, ...], window: int | None) -> None:
    from torch.nn.attention.flex_attention import create_mask, flex_attention

    shared, *others = lengths
    tree, _ = tree_of([[0] * shared + [1] * others[0], [0] * shared + [2] * others[1], [3] * others[2]])
    blocks, length, expected = tree.block_mask(window), len(tree.ends), tree.mask(window)
    assert torch.equal(create_mask(blocks.mask_mod, 1, 1, length, length, "cpu")[0, 0], expected)
    # What is computed of it: nothing outside of the blocks that are listed, everything in the full ones.
    number = blocks.kv_num_blocks.shape[-1]
    cells = torch.zeros(number * 128, number * 128, dtype=torch.bool)
    cells[:length, :length] = expected
    tiles = cells.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).transpose(1, 2)
    for i in range(number):
        full = blocks.full_kv_indices[0, 0, i, : blocks.full_kv_num_blocks[0, 0, i]].tolist()
        partial = blocks.kv_indices[0, 0, i, : blocks.kv_num_blocks[0, 0, i]].tolist()
        assert all(tiles[i, j].all() for j in full)
        assert not any(tiles[i, j].any() for j in set(range(number)) - {*full, *partial})
        assert window or all(tiles[i, j].any() and not tiles[i, j].all() for j in partial)
    query, key, value = (t.detach().float() for t in row(length, 4, 2))
    flex = flex_attention(query, key, value, block_mask=blocks, enable_gqa=True)
    got, _ = tree_attention(MODULE, query, key, value, None, tree=tree, sliding_window=window)
    torch.testing.assert_close(flex.transpose(1, 2), got)


def test_the_mask_for_flex_attention_takes_no_memory_for_pairs_of_tokens() -> None:
    """Of 2**18 tokens: 64 GiB as pairs."""
    length = 2**18
    blocks = RowTree.of_one(length, torch.device("cpu")).block_mask(window=4096)
    assert blocks.kv_num_blocks.max() + blocks.full_kv_num_blocks.max() <= 4096 // 128 + 2


def test_without_a_tree_the_row_is_one_sequence() -> None:
    tensors = row(7, 4, 2)
    got, _ = tree_attention(MODULE, *tensors, None, scaling=0.5)
    assert_same(got, separate(tensors, [list(range(7))], 7, 0.5), tensors)


def test_the_scale_is_by_default_that_of_the_head() -> None:
    tensors = row(5, 2, 2)
    got, _ = tree_attention(MODULE, *tensors, None)
    assert_same(got, separate(tensors, [list(range(5))], 5, HEAD_DIM**-0.5), tensors)


@pytest.mark.parametrize("changed", range(0, 28, 3))
def test_a_token_reaches_only_later_tokens_of_its_own_sequences(changed: int) -> None:
    tree, paths = tree_of([[0] * 9 + [1] * 3, [0] * 9 + [2] * 8, [4] * 8])
    query, key, value = (t.detach() for t in row(28, 2, 1))
    before, _ = tree_attention(MODULE, query, key, value, None, tree=tree)
    key[0, :, changed] += 1
    value[0, :, changed] -= 1
    after, _ = tree_attention(MODULE, query, key, value, None, tree=tree)
    moved = {t for t in range(28) if not torch.equal(before[0, t], after[0, t])}
    expected = {t for path in paths if changed in path for t in path if t >= changed}
    assert moved == expected
