"""Which trajectories go into which micro-batch of which rank, so that no rank waits for another.

A micro-batch costs its tokens T, and attention's pairs of tokens: T + pairs / 6d, in units of a token's pass through
the linear layers (a decoder layer of width d has 12 d^2 weights; a pair costs 4 d operations where a token costs 24
d^2: Kaplan et al. 2020, arXiv:2001.08361, table 1). Groups stay whole, so that their beginnings are computed once,
unless the ranks would come out uneven.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace

import numpy as np

from asyncrl.trainer.packing import TrainSample
from asyncrl.trainer.tree import prefix_tree

EVEN = 1.1
"""Largest time of a step over the mean of the ranks' that no group is cut for."""


@dataclass(frozen=True)
class Part:
    """Trajectories of one group that share a row."""

    members: list[TrainSample]
    tokens: int
    """In the row."""
    cost: float


def split(samples: list[TrainSample], budget: int, width: int, ranks: int = 1) -> list[list[list[TrainSample]]]:
    """The micro-batches of each rank, as many for each; some may be empty.

    budget: tokens of a micro-batch; width: of the model. Raises ValueError if one trajectory is over the budget.
    """
    parts = [part for group in _groups(samples) for part in _fitting(group, budget, width)]
    if not parts:
        return [[] for _ in range(ranks)]
    while True:
        rows = _place(parts, budget, ranks)
        if ranks == 1 or uneven(rows) <= EVEN:
            break
        costliest = max((part for part in parts if len(part.members) > 1), key=lambda p: p.cost, default=None)
        if costliest is None:
            break
        middle = len(costliest.members) // 2
        halves = costliest.members[:middle], costliest.members[middle:]
        parts = [part for part in parts if part is not costliest]
        parts += [part for half in halves for part in _fitting(half, budget, width)]
    return [[[s for part in row[rank] for s in part.members] for row in rows] for rank in range(ranks)]


def uneven(rows: list[list[list[Part]]]) -> float:
    """Time of the slowest ranks, which the others wait for in each micro-batch, over the mean."""
    costs = np.array([[sum(part.cost for part in cell) for cell in row] for row in rows])
    return float(costs.max(axis=1).sum() / costs.mean(axis=1).sum())


def _place(parts: list[Part], budget: int, ranks: int) -> list[list[list[Part]]]:
    """[micro-batch][rank]: the costliest part first, each to the cell that has the least, if it has room."""
    number = -(-sum(part.tokens for part in parts) // (budget * ranks))
    ordered = sorted(parts, key=lambda part: -part.cost)
    while True:
        cells: list[list[Part]] = [[] for _ in range(number * ranks)]
        costs, room = [0.0] * len(cells), [budget] * len(cells)
        for part in ordered:
            fitting = [i for i, free in enumerate(room) if free >= part.tokens]
            if not fitting:
                break
            cell = min(fitting, key=lambda i: (costs[i], i))
            cells[cell].append(part)
            costs[cell] += part.cost
            room[cell] -= part.tokens
        else:
            break
        number += 1
    # Cells of similar costs run side by side.
    order = sorted(range(len(cells)), key=lambda i: (-costs[i], i))
    return [[cells[i] for i in order[start : start + ranks]] for start in range(0, len(order), ranks)]


def _groups(samples: list[TrainSample]) -> list[list[TrainSample]]:
    groups: dict[int, list[TrainSample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    # Of neighbours in this order the longest beginnings are the same.
    return [sorted(members, key=lambda s: s.trajectory.tokens.tobytes()) for members in groups.values()]


def _fitting(members: list[TrainSample], budget: int, width: int) -> list[Part]:
    """A group in parts that fit the budget."""
    parts = []
    while members:
        part = _part(members, width)
        if part.tokens > budget:
            number = bisect_right(range(1, len(members)), budget, key=lambda n: _part(members[:n], width).tokens)
            part = _part(members[: max(number, 1)], width)
        while part.tokens > budget:
            # A tree mostly grows with a member, but a shorter one may share less: short beginnings are not shared
            # by a few.
            if len(part.members) == 1:
                if (own := len(part.members[0].trajectory.tokens)) > budget:
                    raise ValueError(f"a trajectory of {own} tokens is over trainer.tokens_per_microbatch ({budget})")
                part = replace(part, tokens=budget)
                break
            part = _part(part.members[:-1], width)
        parts.append(part)
        members = members[len(part.members) :]
    return parts


def _part(members: list[TrainSample], width: int) -> Part:
    tree = prefix_tree([sample.trajectory.tokens for sample in members])
    pairs = sum((end - start) * (below - start) for start, end, below in tree.nodes)
    tokens = len(tree.tokens)
    # A teacher reads them behind its own prompt, in a row of the same budget.
    behind = (len(p) - t.prompt_length for t in (s.trajectory for s in members) if (p := t.teacher_prompt) is not None)
    return Part(members, tokens + max([0, *behind]), tokens + pairs / (6 * width))
