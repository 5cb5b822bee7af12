"""Who holds what of the weights: the plan of a push and of a checkpoint, fixed once a model is sharded.

A rank of the trainer holds of each parameter the whole, or with FSDP2 a run of rows. Each rank sends what it holds to
every engine worker, which puts the pieces together: no rank gathers what it does not own, and each byte arrives once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from asyncrl.weights.names import Part


@dataclass(frozen=True)
class Piece:
    """Elements [start, stop) of a parameter, in the order in which they lie in memory."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    stop: int

    @classmethod
    def of_wire(cls, fields: Mapping[str, Any]) -> Piece:
        return cls(fields["name"], tuple(fields["shape"]), fields["start"], fields["stop"])


def master(parameter: torch.Tensor) -> torch.Tensor:
    """The weights in fp32 that a parameter is rounded from, if it has such (`trainer/precision.py`), else itself."""
    whole: torch.Tensor = getattr(parameter, "master", parameter)
    return whole


def local_pieces(model: torch.nn.Module) -> Iterator[tuple[Piece, torch.Tensor]]:
    """What this rank sends of every trained parameter, tied ones once, under the first name (as `named_parameters`
    gives them); of ranks that hold the same (HSDP) the first. Every rank has all names in the same order."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            first, local, is_first = own_rows(master(parameter))
            local = local if is_first else local[:0]
            start = first * parameter.shape[1:].numel()
            yield Piece(name, tuple(parameter.shape), start, start + local.numel()), local


def cut(piece: Piece, parts: Iterable[Part]) -> Iterator[Piece]:
    """What there is in a piece of a parameter of each tensor that the parameter is in the checkpoint: as many pieces on
    every rank, in the same order; those of which it has nothing are empty."""
    for part in parts:
        start = min(max(piece.start, part.start), part.stop)
        stop = max(start, min(piece.stop, part.stop))
        yield Piece(part.name, part.shape, start - part.start, stop - part.start)


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


def assemble(parts: Iterable[tuple[Piece, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole parameters of flat pieces, as soon as each is complete; a copy where there is more than one piece."""
    held: dict[str, list[tuple[Piece, torch.Tensor]]] = {}
    for piece, flat in parts:
        if piece.start == piece.stop:
            continue
        found = held.setdefault(piece.name, [])
        found.append((piece, flat))
        if sum(p.stop - p.start for p, _ in found) == torch.Size(piece.shape).numel():
            found.sort(key=lambda part: part[0].start)
            flats = [f for _, f in found]
            yield piece.name, (flats[0] if len(flats) == 1 else torch.cat(flats)).view(piece.shape)
            del held[piece.name]
    if held:
        raise ValueError(f"of {len(held)} parameters not all has arrived, such as {min(held)}")
