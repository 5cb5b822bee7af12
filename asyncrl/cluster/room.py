"""Whether this machine has the GPUs that a recipe asks for, where Ray would start on it.

Asked before ray is imported: the cluster itself is asked in `placement.reserve`.
"""

from __future__ import annotations

import os

from asyncrl import local_gpus
from asyncrl.cluster.shape import asked_of, counted, place
from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe

_ELSEWHERE = ("RAY_ADDRESS", "RAY_OVERRIDE_RESOURCES")
"""Variables by which Ray's GPUs are others than this machine's."""


def require_gpus(recipe: Recipe) -> None:
    """Raises UserError if this machine is too small for the recipe; not if a cluster is named, or if the GPUs of this
    machine cannot be counted."""
    asked = asked_of(recipe)
    if not asked or recipe.ray_address or any(map(os.environ.get, _ELSEWHERE)):
        return
    gpus = local_gpus.listed()
    if gpus is None or not (homeless := place(asked, [len(gpus)])):
        return
    if gpus:
        raise UserError(
            f"{counted(asked)}, this machine has {len(gpus)}: no room for {counted(homeless, short=True)}; lower "
            "rollout.replicas, rollout.gpus_per_replica or trainer.ranks, or name a cluster in ray_address"
        )
    keys = {
        "rollout.gpus_per_replica": recipe.rollout.gpus_per_replica,
        "trainer.gpus_per_rank": recipe.trainer.gpus_per_rank,
        "rewards.placement.num_gpus": recipe.rewards.placement and recipe.rewards.placement.num_gpus,
    }
    on_cpus = " ".join(f"{key}=0" for key, value in keys.items() if value)
    raise UserError(
        f"{counted(asked)}, this machine has none; say {on_cpus} to run on its CPUs, or name a cluster in ray_address"
    )
