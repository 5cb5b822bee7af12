"""How many nodes a recipe takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.cluster.shape import Piece, num_nodes, pieces, place, reward_pieces
from asyncrl.errors import UserError
from asyncrl.recipe.rewards import PlacementRecipe, RewardsRecipe
from asyncrl.recipe.schema import Recipe


def recipe(replicas: int, gpus_per_replica: float, ranks: int, gpus_per_rank: float) -> Recipe:
    keys: dict[str, Any] = {"model": "x", "data": {"path": "x"}, "reward": "x", "max_steps": 1}
    keys["rollout"] = {"replicas": replicas, "gpus_per_replica": gpus_per_replica}
    keys["trainer"] = {"ranks": ranks, "gpus_per_rank": gpus_per_rank}
    return Recipe.model_validate(keys)


@pytest.mark.parametrize(
    ("shape", "gpus_per_node", "nodes"),
    [
        ((1, 0, 1, 0), 8, 1),
        ((1, 1, 1, 1), 8, 1),
        ((4, 1, 4, 1), 8, 1),
        ((2, 4, 9, 1), 8, 3),
        ((3, 5, 0 + 1, 1), 8, 3),
        ((2, 8, 16, 1), 8, 4),
        ((1, 1, 1, 1), 1, 2),
        ((1, 0.4, 1, 0.6), 1, 1),
        ((1, 0.5, 1, 0.6), 1, 2),
        ((1, 0.5, 1, 0.6), 2, 1),
        ((5, 0.2, 2, 1), 2, 2),
    ],
)
def test_nodes(shape: tuple[int, float, int, float], gpus_per_node: int, nodes: int) -> None:
    assert num_nodes(recipe(*shape), gpus_per_node) == nodes


def test_a_generator_larger_than_a_node() -> None:
    with pytest.raises(UserError, match="a generator asks for 16 GPUs on one node, and a node has 8"):
        num_nodes(recipe(1, 16, 1, 1), 8)


@given(st.lists(st.integers(1, 8), max_size=12), st.lists(st.integers(0, 8), max_size=6))
def test_what_is_placed_fits(sizes: list[int], free: list[int]) -> None:
    asked = [Piece("generator", size) for size in sizes]
    homeless = place(asked, free)
    assert sum(sizes) - sum(piece.num_gpus for piece in homeless) <= sum(free)
    assert all(piece in asked for piece in homeless)
    if homeless:
        assert min(piece.num_gpus for piece in homeless) > 0
    else:
        assert sum(sizes) <= sum(free)


@given(st.lists(st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.6, 1, 2]), max_size=8), st.lists(st.integers(0, 3), max_size=4))
def test_a_share_lies_on_one_gpu(sizes: list[float], free: list[int]) -> None:
    """None is refused that fits by the simplest rule, a GPU for each share."""
    asked = [Piece("generator", size) for size in sizes]
    homeless = place(asked, free)
    placed = sum(sizes) - sum(piece.num_gpus for piece in homeless)
    assert placed <= sum(free) + 1e-6
    # Of three shares of 0.6, two need two GPUs.
    assert sum(size > 0.5 for size in sizes) - sum(piece.num_gpus > 0.5 for piece in homeless) <= sum(free)
    if not place([Piece("generator", max(1, size)) for size in sizes], free):
        assert not homeless


def test_pieces_are_ranks_and_generators() -> None:
    assert pieces(recipe(2, 4, 3, 1)) == [Piece("trainer rank", 1)] * 3 + [Piece("generator", 4)] * 2
    assert pieces(recipe(2, 0, 3, 0)) == []


def test_reward_actors_take_gpus_of_nodes_beside_those_of_the_run() -> None:
    alone = recipe(2, 4, 3, 1)
    placement = PlacementRecipe(replicas=2, num_gpus=3)
    placed = alone.model_copy(update={"rewards": RewardsRecipe(placement=placement)})
    assert (pieces(placed), reward_pieces(placed)) == (pieces(alone), [Piece("reward actor", 3)] * 2)
    assert (num_nodes(alone, 6), num_nodes(placed, 6)) == (2, 3)
    assert reward_pieces(alone) == []
    large = alone.model_copy(update={"rewards": RewardsRecipe(placement=PlacementRecipe(num_gpus=8))})
    with pytest.raises(UserError, match=r"^rewards.placement.num_gpus: a reward actor asks for 8 GPUs on one node"):
        num_nodes(large, 6)
