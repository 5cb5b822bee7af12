"""The prefix tree: every sequence is there, shared beginnings once, and who sees whom follows from two numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.trainer.tree import LEAST_SAVED, prefix_tree

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=12)


@given(SEQUENCES, st.integers(0, 20))
def test_the_row_holds_every_sequence_and_tokens_see_their_own_path(sequences: list[list[int]], shared: int) -> None:
    sequences = [[1] * shared + s for s in sequences]
    tree = prefix_tree([np.array(s, np.int32) for s in sequences])
    seen = np.zeros((len(tree.tokens), len(tree.tokens)), bool)
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert tree.tokens[path].tolist() == sequence
        assert tree.depths[path].tolist() == list(range(len(path)))
        for place, token in enumerate(path):
            seen[token, path[: place + 1]] = True
    i = np.arange(len(tree.tokens))
    assert np.array_equal((i[None] <= i[:, None]) & (i[:, None] < tree.ends[None]), seen)


@given(SEQUENCES)
def test_nodes_fill_the_row_and_what_is_below_them_follows(sequences: list[list[int]]) -> None:
    tree = prefix_tree([np.array(s) for s in sequences])
    assert [start for start, _, _ in tree.nodes] == [0, *(end for _, end, _ in tree.nodes[:-1])]
    assert tree.nodes[-1][1] == len(tree.tokens)
    for start, end, below in tree.nodes:
        assert start < end <= below
        assert set(tree.ends[start:end]) == {below}


@given(SEQUENCES)
def test_it_saves_what_a_trie_saves_but_for_the_little_that_is_not_worth_a_node(sequences: list[list[int]]) -> None:
    tree = prefix_tree([np.array(s) for s in sequences])
    trie = {tuple(s[: n + 1]) for s in sequences for n in range(len(s))}
    total = sum(map(len, sequences))
    assert len(trie) <= len(tree.tokens) <= total
    assert len(tree.tokens) - len(trie) <= (LEAST_SAVED - 1) * (len(sequences) - 1)


def test_equal_sequences_pass_once() -> None:
    tree = prefix_tree([np.arange(9)] * 5)
    assert tree.tokens.tolist() == list(range(9))
    assert tree.nodes == ((0, 9, 9),)
