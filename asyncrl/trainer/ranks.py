"""Several ranks of one trainer: where they meet, and how models are sharded over them (FSDP2).

Every rank sees every batch and decides the same; a rank computes on its own part of the samples, and holds its own
rows of each parameter, its gradient and its moments. What they tell one another: parameters before a layer is used,
gradients after it, and a few numbers per update.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from asyncrl.cluster.rendezvous import Rendezvous, SealedStore, require_members
from asyncrl.recipe.trainer import TrainerRecipe
from asyncrl.trainer.precision import TYPES, place


class ProcessGroup:
    """This rank among `size`. A group of one does nothing, at no cost."""

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self.device, self.rank, self.size = device, rank, size
        self.sync_group: Any = None
        """Of all ranks, for weight syncs alone: they run beside the steps."""
        self.store: SealedStore | None = None
        """Kept, because torch keeps its C++ half alone."""
        self._key = b""

    @classmethod
    def join(
        cls,
        rendezvous: Rendezvous,
        store: SealedStore | None,
        rank: int,
        size: int,
        device: torch.device,
        timeout_s: float,
    ) -> ProcessGroup:
        """Meet the other ranks; `store` is rank 0's own. No collective waits longer than `timeout_s`."""
        timeout = timedelta(seconds=timeout_s)
        store = store or rendezvous.join(timeout_s)
        backend, place = ("nccl", store.bare) if device.type == "cuda" else ("gloo", store)
        distributed.init_process_group(backend, store=place, rank=rank, world_size=size, timeout=timeout)
        process_group = cls(device, rank, size)
        process_group.store, process_group._key = store, rendezvous.key
        process_group.sync_group = distributed.new_group(timeout=timeout)
        process_group._require_members(distributed.group.WORLD, process_group.sync_group)
        return process_group

    def _require_members(self, *groups: Any) -> None:
        for group in groups:
            require_members(group, group.rank(), self._key, self.device)

    def shard(self, called: torch.nn.Module, model: torch.nn.Module, recipe: TrainerRecipe) -> None:
        """Divide the model's parameters among the ranks, in place; `called` is what is called, `model` is in it. They
        come to the device a layer at a time, of which only this rank's rows stay.

        `shard_ranks` of them hold one copy together; several copies are kept in step (HSDP). Parameters that stay
        frozen beside trained ones (LoRA) are whole on every rank.
        """
        if self.size == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        per_copy = recipe.shard_ranks or self.size
        mesh = init_device_mesh(self.device.type, (self.size // per_copy, per_copy), mesh_dim_names=("copy", "shard"))
        self._require_members(*mesh.get_all_groups())
        if per_copy == self.size:
            mesh = mesh["shard"]
        trained = {p for p in model.parameters() if p.requires_grad}
        whole = set(model.parameters()) - trained if trained else set()
        layers = set(model._no_split_modules or ())
        # Weights travel in the type of the products; gradients are summed in fp32, as on one rank.
        rounded = MixedPrecisionPolicy(TYPES[recipe.precision], torch.float32, cast_forward_inputs=False)
        policy = MixedPrecisionPolicy() if recipe.precision == "fp32" else rounded
        for module in model.modules():
            if type(module).__name__ in layers:
                place(module, self.device)
                fully_shard(module, mesh=mesh, ignored_params=whole, mp_policy=policy)
        place(called, self.device)
        # The outermost module would keep its parameters after a no-grad forward, and use them, outdated, in the
        # pass after the next update.
        fully_shard(called, mesh=mesh, ignored_params=whole, mp_policy=policy, reshard_after_forward=True)

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the sum of all ranks' losses: FSDP takes their mean."""
        (loss * self.size).backward()

    def sum(self, values: list[float]) -> list[float]:
        """Of each number over all ranks, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.tolist()

    def exchange(self, own: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
        """Every rank's tensor, of `sizes` elements each."""
        if self.size == 1:
            return [own]
        padded = own.new_zeros(max(sizes))
        padded[: len(own)] = own
        received = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(received, padded)
        return [part[:size] for part, size in zip(received, sizes, strict=True)]
