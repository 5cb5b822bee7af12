"""Joining or starting Ray, and whether it has what the recipe asks for."""

from __future__ import annotations

import logging
import os
import tempfile
from typing import Any

import ray

from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe

logger = logging.getLogger(__name__)


def start(recipe: Recipe) -> None:
    """Connect to `ray_address` or RAY_ADDRESS, else start Ray on this machine. UserError if it cannot be reached."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = recipe.ray_address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        # What Ray has to say of a dead worker, the driver says in its own words.
        ray._private.worker.listen_error_messages = lambda *_: None
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"the cluster at {address}" if address else f"Ray in {tempfile.gettempdir()}"
        raise UserError(f"ray_address: cannot start or reach {where}: {str(error).splitlines()[0]}") from error


def check_resources(recipe: Recipe) -> None:
    """UserError, naming what is missing, if the GPUs asked for are more than the cluster has."""
    asked = {
        f"{recipe.rollout.replicas} generators x {recipe.rollout.gpus_per_replica}": recipe.rollout.replicas
        * recipe.rollout.gpus_per_replica,
        f"{recipe.trainer.ranks} trainer ranks x {recipe.trainer.gpus_per_rank}": recipe.trainer.ranks
        * recipe.trainer.gpus_per_rank,
    }
    total, present = sum(asked.values()), int(ray.cluster_resources().get("GPU", 0))
    if total > present:
        parts = " + ".join(k for k, v in asked.items() if v)
        raise UserError(
            f"the recipe asks for {total} GPUs ({parts}), the cluster has {present}: {total - present} are missing; "
            "lower rollout.replicas, rollout.gpus_per_replica or trainer.gpus_per_rank, or name a larger cluster "
            "in ray_address"
        )


def stop() -> None:
    """Leave the cluster; actors of this run end with it."""
    ray.shutdown()
