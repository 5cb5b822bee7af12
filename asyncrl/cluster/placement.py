"""Room for the whole run in one placement group: for all actors that ask for GPUs or for each other, or for none.
Those that share one GPU share a bundle, so that it is the same one.

Two runs that start at once can so not take half of what each needs. A lost actor's place is kept for the next one.
Waits for: other jobs on the cluster, until `deadlines.start_s`, and says so. Unblocked by: their end.
"""

from __future__ import annotations

from collections.abc import Callable

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from asyncrl.cluster.shape import asked_of, counted, pieces, place
from asyncrl.errors import DeadlineExceeded, UserError
from asyncrl.processes.nodes import ALMOST_NO_CPU
from asyncrl.recipe.rewards import PlacementRecipe, told
from asyncrl.recipe.schema import Recipe

_AT_ONCE_S = 5.0
_ROUNDING = 1e-6
"""Of sums of shares."""


class Places:
    """The bundles: one per trainer rank, then one per generator that the run begins with, if these have GPUs; or one
    for all of them."""

    def __init__(self, recipe: Recipe, group: PlacementGroup | None) -> None:
        self._num_ranks, rollout = recipe.trainer.ranks, recipe.rollout
        self._num_generators = rollout.first_replicas if rollout.gpus_per_replica else 0
        self._one, self._group = recipe.on_one_gpu, group

    def of_rank(self, rank: int) -> PlacementGroupSchedulingStrategy | None:
        """None: anywhere."""
        return PlacementGroupSchedulingStrategy(self._group, rank) if self._group else None

    def of_generator(self, number: int) -> PlacementGroupSchedulingStrategy | str:
        if self._group and self._one:
            return PlacementGroupSchedulingStrategy(self._group, 0)
        if self._group and number < self._num_generators:
            return PlacementGroupSchedulingStrategy(self._group, self._num_ranks + number)
        return "SPREAD"


def reserve(recipe: Recipe, say: Callable[[str], object]) -> Places:
    """Raises UserError if the cluster is too small for the recipe, DeadlineExceeded if it stays too full; either names
    what is asked, what is there, and where. Actors of rewards are not in the group: they find room later, as they
    can."""
    asked = asked_of(recipe)
    if recipe.rewards.placement:
        _require_room(recipe.rewards.placement)
    if homeless := place(asked, [total for _, total, _ in gpus_of_nodes()]):
        raise UserError(
            f"{counted(asked)}, {_present()}: no room for {counted(homeless, short=True)}; lower rollout.replicas, "
            "rollout.gpus_per_replica or trainer.ranks, or name a larger cluster in ray_address"
        )
    bundles = _bundles(recipe)
    if not bundles:
        return Places(recipe, None)
    group = placement_group(bundles, strategy="PACK")
    if not group.wait(_AT_ONCE_S):
        say(f"waiting for others on the cluster: {counted(asked)}, {_present()}")
        if not group.wait(recipe.deadlines.start_s):
            remove_placement_group(group)
            raise DeadlineExceeded(
                f"{counted(asked)}, and got no room within {recipe.deadlines.start_s:.0f} s (deadlines.start_s), "
                f"{_present()}; end what holds the GPUs, or lower rollout.replicas or trainer.ranks"
            )
    return Places(recipe, group)


def _bundles(recipe: Recipe) -> list[dict[str, float]]:
    trainer, rollout = recipe.trainer, recipe.rollout
    if trainer.ranks == 1 and not trainer.gpus_per_rank and not rollout.gpus_per_replica:
        return []
    if recipe.on_one_gpu:
        count = 1 + rollout.replicas
        return [{"CPU": count * ALMOST_NO_CPU, "GPU": sum(piece.num_gpus for piece in pieces(recipe))}]
    sizes = [trainer.gpus_per_rank] * trainer.ranks
    sizes += [rollout.gpus_per_replica] * (rollout.first_replicas if rollout.gpus_per_replica else 0)
    return [{"CPU": ALMOST_NO_CPU, **({"GPU": size} if size else {})} for size in sizes]


def _require_room(placement: PlacementRecipe) -> None:
    """Raises UserError if the nodes, were they empty, would not take all replicas."""
    # Several may have one address: in a cluster on one machine.
    nodes = [(node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    asked = placement.asked or {"CPU": ALMOST_NO_CPU}
    room = sum(int(min(has.get(name, 0) / amount + _ROUNDING for name, amount in asked.items())) for _, has in nodes)
    if room < placement.replicas:
        present = "; ".join(
            f"{address} has {told({name: has.get(name, 0) for name in asked})}" for address, has in nodes
        )
        raise UserError(
            f"rewards.placement: {placement.replicas} replica(s) ask for {placement} each, and the cluster has room "
            f"for {room} ({present}); begin a node that has it (`ray start --resources=...`), or ask for less"
        )


def gpus_of_nodes() -> list[tuple[str, int, float]]:
    """Address of each living node, GPUs it has, and what is free of them."""
    free = ray._private.state.available_resources_per_node()
    return [
        (
            node["NodeManagerAddress"],
            int(node["Resources"].get("GPU", 0)),
            round(free.get(node["NodeID"], {}).get("GPU", 0), 4),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _present() -> str:
    nodes = gpus_of_nodes()
    where = ", ".join(f"{address} {free:g} of {total} free" for address, total, free in nodes)
    return f"the cluster has {sum(total for _, total, _ in nodes)} ({where})"
