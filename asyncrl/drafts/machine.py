"""What this machine has for a run, and how best to divide it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncrl import local_gpus, memory
from asyncrl.errors import UserError
from asyncrl.planner.gpus import GPUS
from asyncrl.planner.plan import plan
from asyncrl.recipe.cores import usable_cores
from asyncrl.recipe.schema import Recipe

_GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """CPUs, and GPUs that are alike."""

    cores: int
    memory_gib: float
    gpu: str | None = None
    """As nvidia-smi calls it."""
    num_gpus: int = 0
    gpu_gib: float = 0.0

    def __str__(self) -> str:
        of_host = f"{self.cores} cores, {self.memory_gib:.0f} GiB of memory free"
        return (
            f"{self.num_gpus} x {self.gpu} of {self.gpu_gib:.0f} GiB; {of_host}" if self.gpu else f"{of_host}, no GPU"
        )

    @property
    def planned_as(self) -> str | None:
        """The planner's GPU that this is; None: it has no figures of it."""
        name = (self.gpu or "").upper().replace(" ", "").replace("-", "")
        alike = [gpu for gpu in GPUS.values() if gpu.name.partition("-")[0] in name]
        alike = [gpu for gpu in alike if abs(gpu.memory_gib - self.gpu_gib) < 0.1 * gpu.memory_gib]
        return alike[0].name if alike else None


def here() -> Machine:
    """This machine, with the GPUs that can be counted."""
    host = Machine(len(usable_cores()), memory.available() / _GIB)
    gpus = local_gpus.listed()
    return Machine(host.cores, host.memory_gib, gpus[0].name, len(gpus), gpus[0].memory_gib) if gpus else host


def divided(recipe: Recipe, machine: Machine, base_dir: Path) -> tuple[dict[str, Any], str]:
    """Keys that divide the GPUs between generators and trainer, and by what they were chosen."""
    if not machine.num_gpus:
        return {}, "CPUs: generator and trainer have half of the cores each"
    if name := machine.planned_as:
        try:
            best = plan(recipe, base_dir, machine.num_gpus, name).rows[0]
        except UserError as error:
            why = str(error)
        else:
            said = best.split.overrides(recipe)
            return dict(one.split("=", 1) for one in said.split()), f"planned for {machine.num_gpus} x {name}"
    else:
        why = f"the planner has no figures of {machine.gpu}"
    if machine.num_gpus == 1:
        shares = {"rollout.gpus_per_replica": 0.35, "rollout.kv_cache_gib": max(1, int(machine.gpu_gib / 10))}
        return {**shares, "trainer.gpus_per_rank": 0.65}, f"not planned: {why}"
    half = machine.num_gpus // 2
    keys = {"rollout.replicas": half, "rollout.gpus_per_replica": 1, "trainer.ranks": machine.num_gpus - half}
    return {**keys, "trainer.gpus_per_rank": 1}, f"halves, not planned: {why}"
