"""Token sequences as a prefix tree, laid out in one row: what several sequences begin with stands there once.

    sequences   p p p a a      p p p b      p p p b c      x y
    row         p p p a a b c x y
    depths      0 1 2 3 4 3 4 0 1        position in the sequence
    ends        7 7 7 5 5 7 7 9 9        end of the row's part in which the token is seen

Depth first, so everything below a token stands right behind it: token i sees token j iff j <= i < ends[j]. A *node*
is a run of the row that all sequences below it share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

LEAST_SAVED = 8
"""Tokens that a node must save the model, for each node costs attention calls of its own."""

Node = tuple[int, int, int]
"""First token of the row, end, and end of everything below it."""


@dataclass(frozen=True)
class PrefixTree:
    """T tokens in the row."""

    tokens: np.ndarray
    """int64 [T]."""
    depths: np.ndarray
    """int64 [T]."""
    ends: np.ndarray
    """int64 [T]."""
    nodes: tuple[Node, ...]
    """In the order of the row, which they fill."""
    paths: list[np.ndarray]
    """Of each sequence, in the order given: the tokens of the row that it consists of."""


def prefix_tree(sequences: Sequence[np.ndarray]) -> PrefixTree:
    """The tree of token sequences, integers [L] each."""
    # Of one dtype, bytes in any order bring sequences with a common beginning together.
    sequences = [np.asarray(s, np.int64) for s in sequences]
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].tobytes())
    shared = [0, *(_num_shared(sequences[a], sequences[b]) for a, b in pairwise(order))]
    pieces: list[np.ndarray] = []
    nodes: list[Node] = []
    no_path = np.zeros(0, np.int64)
    paths = [no_path] * len(sequences)
    end = 0

    def grow(first: int, last: int, depth: int, path: np.ndarray) -> None:
        """Lay out order[first:last], which share `depth` tokens that stand in the row at `path`."""
        nonlocal end
        sequence = sequences[order[first]]
        common = min(shared[first + 1 : last], default=len(sequence))
        number = len(nodes)
        saved = (last - first - 1) * (common - depth)
        takes = common > depth and (last - first == 1 or saved >= LEAST_SAVED)
        if takes:
            nodes.append((end, end + common - depth, end))
            pieces.append(sequence[depth:common])
            path = np.concatenate([path, np.arange(end, end + common - depth)])
            end, depth = end + common - depth, common
        if last - first == 1:
            paths[order[first]] = path
        else:
            cuts = [first, *(i for i in range(first + 1, last) if shared[i] == common), last]
            for a, b in pairwise(cuts):
                grow(a, b, depth, path)
        if takes:
            nodes[number] = (*nodes[number][:2], end)

    cuts = [0, *(i for i in range(1, len(order)) if shared[i] == 0), len(order)]
    for a, b in pairwise(cuts):
        grow(a, b, 0, no_path)
    depths = np.zeros(end, np.int64)
    for path in paths:
        depths[path] = np.arange(len(path))
    ends = np.repeat([below for _, _, below in nodes], [to - start for start, to, _ in nodes])
    return PrefixTree(np.concatenate(pieces), depths, ends, tuple(nodes), paths)


def _num_shared(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens that both begin with."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
