"""How many GPUs a recipe asks for, in what pieces, and how many nodes that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe

GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Piece:
    """GPUs that must lie on one node."""

    role: str
    num_gpus: int


def pieces(recipe: Recipe, replicas: int | None = None) -> list[Piece]:
    """Of every trainer rank and so many generators, by default all, if they ask for GPUs."""
    rollout, trainer = recipe.rollout, recipe.trainer
    asked = [Piece("trainer rank", trainer.gpus_per_rank)] * trainer.ranks
    asked += [Piece("generator", rollout.gpus_per_replica)] * (rollout.replicas if replicas is None else replicas)
    return [piece for piece in asked if piece.num_gpus]


def place(asked: Sequence[Piece], free: Sequence[int]) -> list[Piece]:
    """The pieces that find no node with room, when the largest are placed first, each on the fullest node that takes
    it. `free`: GPUs of each node."""
    left, homeless = list(free), []
    for piece in sorted(asked, key=lambda piece: -piece.num_gpus):
        fits = [n for n in range(len(left)) if left[n] >= piece.num_gpus]
        if not fits:
            homeless.append(piece)
            continue
        left[min(fits, key=lambda n: left[n])] -= piece.num_gpus
    return homeless


def num_nodes(recipe: Recipe, gpus_per_node: int) -> int:
    """Fewest equal nodes that take the recipe; 1 without GPUs. UserError if a piece is larger than a node."""
    asked = pieces(recipe)
    if asked and (largest := max(asked, key=lambda piece: piece.num_gpus)).num_gpus > gpus_per_node:
        raise UserError(
            f"rollout.gpus_per_replica: a {largest.role} asks for {largest.num_gpus} GPUs on one node, and a node has "
            f"{gpus_per_node}; lower it, or say --gpus-per-node"
        )
    count = 1
    while place(asked, [gpus_per_node] * count):
        count += 1
    return count
