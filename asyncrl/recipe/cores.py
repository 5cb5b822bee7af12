"""Which CPU cores each role works on where the recipe does not say.

Two roles that work side by side, each with a thread on every core, wait for one another at the end of every parallel
loop: then each gets half of the cores. Roles that take turns, or of which one is on GPUs, get all.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncrl.recipe.schema import Recipe

SPIN = {"GOMP_SPINCOUNT": "1000"}
"""Environment of a process that computes with torch or vLLM: how often a thread of OpenMP looks before it sleeps, when
it waits for another at the end of a loop. By itself 300,000 times, some milliseconds: beside a busy program the one
waited for may be off its core, and whoever spins keeps it there. Read when libgomp is loaded."""
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""A container's own: "200000 100000" is two cores' time."""


def engine_cores(recipe: Recipe, number: int = 0, engines: int = 1) -> str:
    """Of the CPU engine with this number among `engines` on one machine, as a list such as "0,1"."""
    cores = usable_cores()
    if _side_by_side(recipe):
        cores = cores[: len(cores) // 2]
    each = max(1, len(cores) // engines)
    first = number * each % len(cores)
    return recipe.rollout.cpu_cores or ",".join(map(str, cores[first : first + each]))


def trainer_threads(recipe: Recipe) -> int:
    """torch threads of a trainer rank."""
    number = len(usable_cores())
    share = number - number // 2 if _side_by_side(recipe) else number
    return recipe.trainer.cpu_threads or max(1, share // recipe.trainer.ranks)


def _side_by_side(recipe: Recipe) -> bool:
    on_cpus = not (recipe.rollout.gpus_per_replica or recipe.trainer.gpus_per_rank)
    return recipe.max_staleness > 0 and on_cpus and not recipe.from_data and len(usable_cores()) > 1


def usable_cores() -> list[int]:
    """Those that this process may run on, at least one: not more than its container has time of.

    Threads beyond that stand still for most of each period, and others wait for them.
    """
    known = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    try:
        quota_us, period_us = _CPU_MAX.read_text().split()
        return known[: max(1, math.ceil(int(quota_us) / int(period_us)))]
    except (OSError, ValueError):
        # No cgroup of version 2, or no limit in it ("max").
        return known
