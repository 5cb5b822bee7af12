"""What a rank holds of a model whose parameters are divided by rows (FSDP2): for checkpoints and for weight syncs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from asyncrl.trainer.checkpoint_names import Part, checkpoint_parts
from asyncrl.weights.shards import Held, Shard


def master(parameter: torch.Tensor) -> torch.Tensor:
    """The weights in fp32 that a parameter is rounded from, if it has such (`trainer/precision.py`), else itself."""
    whole: torch.Tensor = getattr(parameter, "master", parameter)
    return whole


def weight_shards(model: torch.nn.Module) -> list[Held]:
    """What this rank sends of every trained parameter, tied ones once, under the first name (as `named_parameters`
    gives them), cut into the tensors of the checkpoint; of ranks that hold the same (HSDP) the first sends."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parts = checkpoint_parts(model, {name: tuple(p.shape) for name, p in trained.items()})
    found = []
    for name, parameter in trained.items():
        first, local, is_first = own_rows(master(parameter))
        local = local if is_first else local[:0]
        start = first * parameter.shape[1:].numel()
        found.append(Held(local, cut(start, start + local.numel(), parts[name])))
    return found


def cut(start: int, stop: int, parts: Iterable[Part]) -> tuple[Shard, ...]:
    """What there is in elements [start, stop) of a parameter of each tensor that it is in the checkpoint: as many
    shards on every rank, in the same order; those of which it has nothing are empty."""
    shards = []
    for part in parts:
        begin = min(max(start, part.start), part.stop)
        end = max(begin, min(stop, part.stop))
        shards.append(Shard(part.name, part.shape, (begin - part.start,), (end - begin,)))
    return tuple(shards)


def own_rows(tensor: torch.Tensor) -> tuple[int, torch.Tensor, bool]:
    """Of a tensor that may be sharded by rows: the first one that this rank holds, its rows, and whether it is the
    first rank to hold them."""
    if not isinstance(tensor, DTensor):
        return 0, tensor.detach(), True
    mesh, first, is_first = tensor.device_mesh, 0, True
    for dimension, placement in enumerate(tensor.placements):
        index = mesh.get_local_rank(dimension)
        if placement.is_shard(0):
            # As torch.chunk does it.
            chunk = -(-tensor.shape[0] // mesh.size(dimension))
            first = min(index * chunk, tensor.shape[0])
        else:
            is_first &= index == 0
    return first, tensor.to_local().detach(), is_first


def held(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensor under its name in a checkpoint; of one that is sharded the rows that this rank is the first to hold,
    as `name@<first row>`."""
    first, rows, is_first = own_rows(tensor)
    if not isinstance(tensor, DTensor):
        return {name: rows}
    return {f"{name}@{first}": rows} if is_first and rows.numel() else {}


def fill(tensor: torch.Tensor, whole: Any) -> torch.Tensor:
    """Give a tensor the rows of `whole`, a tensor or what is sliced as one, that this rank holds of it."""
    if tensor.shape != whole.shape:
        raise ValueError(f"a tensor of shape {list(whole.shape)} is in the place of one of {list(tensor.shape)}")
    first, rows, _ = own_rows(tensor)
    rows.copy_(whole[first : first + len(rows)] if isinstance(tensor, DTensor) else whole[...])
    return tensor
