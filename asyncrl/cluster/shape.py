"""How many GPUs a recipe asks for, in what pieces, and how many nodes that takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe

GPUS_PER_NODE = 8
_ROUNDING = 1e-6
"""Of sums of shares."""


@dataclass(frozen=True)
class Piece:
    """GPUs that must lie on one node; of one alone perhaps a share."""

    role: str
    num_gpus: float


def pieces(recipe: Recipe, replicas: int | None = None) -> list[Piece]:
    """Of every trainer rank and so many generators, by default all, if they ask for GPUs."""
    rollout, trainer = recipe.rollout, recipe.trainer
    asked = [Piece("trainer rank", trainer.gpus_per_rank)] * trainer.ranks
    asked += [Piece("generator", rollout.gpus_per_replica)] * (rollout.replicas if replicas is None else replicas)
    return [piece for piece in asked if piece.num_gpus]


def reward_pieces(recipe: Recipe) -> list[Piece]:
    """Of every actor of `rewards.placement`, if they ask for GPUs; beside those of `pieces`."""
    placement = recipe.rewards.placement
    return [Piece("reward actor", placement.num_gpus)] * placement.replicas if placement and placement.num_gpus else []


def asked_of(recipe: Recipe) -> list[Piece]:
    """What a run asks for when it begins."""
    return pieces(recipe, recipe.rollout.first_replicas) + reward_pieces(recipe)


def counted(asked: Sequence[Piece], short: bool = False) -> str:
    """In words: how many GPUs the recipe asks for, and for what; `short`: for what alone."""
    counts = Counter(asked).items()
    what = " + ".join(f"{n} {p.role}{'s' if n > 1 else ''} x {p.num_gpus}" for p, n in counts) or "none"
    total = sum(piece.num_gpus for piece in asked)
    return what if short else f"the recipe asks for {total:g} GPU{'' if total == 1 else 's'} ({what})"


def place(asked: Sequence[Piece], free: Sequence[float]) -> list[Piece]:
    """The pieces that find no node with room, when the largest are placed first, each on the fullest node that takes
    it, a share on the fullest GPU. `free`: GPUs of each node."""
    left = [[1.0] * int(gpus) + [gpus % 1] for gpus in free]
    homeless = []
    for piece in sorted(asked, key=lambda piece: -piece.num_gpus):
        if piece.num_gpus >= 1:
            number = int(piece.num_gpus)
            fits = [node for node in left if node.count(1.0) >= number]
            if fits:
                node = min(fits, key=lambda node: node.count(1.0))
                node[:] = sorted(node, reverse=True)
                node[:number] = [0.0] * number
        else:
            shares = [(gpu, node) for node in left for gpu in node if gpu >= piece.num_gpus - _ROUNDING]
            if fits := [node for _, node in shares]:
                gpu, node = min(shares, key=lambda share: share[0])
                node[node.index(gpu)] -= piece.num_gpus
        if not fits:
            homeless.append(piece)
    return homeless


def num_nodes(recipe: Recipe, gpus_per_node: int) -> int:
    """Fewest equal nodes that take the recipe; 1 without GPUs. UserError if a piece is larger than a node."""
    asked = pieces(recipe) + reward_pieces(recipe)
    if asked and (largest := max(asked, key=lambda piece: piece.num_gpus)).num_gpus > gpus_per_node:
        key = "rollout.gpus_per_replica" if largest in pieces(recipe) else "rewards.placement.num_gpus"
        raise UserError(
            f"{key}: a {largest.role} asks for {largest.num_gpus} GPUs on one node, and a node has "
            f"{gpus_per_node}; lower it, or say --gpus-per-node"
        )
    count = 1
    while place(asked, [gpus_per_node] * count):
        count += 1
    return count
