"""Who holds what of the weights: the plan of a weight sync, fixed once a trainer has divided its model.

Each rank of the trainer sends what it holds to every engine worker, which puts the shards together: no rank gathers
what it does not own, and each byte arrives once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch


@dataclass(frozen=True)
class Shard:
    """A box of a tensor of the model's checkpoint, of `size` from `offset` on; its elements lie as those of a tensor of
    that size do. With one number each it is a run of the tensor's elements, whatever its dimensions."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offset: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def of_wire(cls, fields: Mapping[str, Any]) -> Shard:
        return cls(fields["name"], tuple(fields["shape"]), tuple(fields["offset"]), tuple(fields["size"]))

    @property
    def num_elements(self) -> int:
        return prod(self.size)


@dataclass(frozen=True)
class Held:
    """A tensor of the trainer's, the same one for good, and which shards its elements are, in their order."""

    tensor: torch.Tensor
    shards: tuple[Shard, ...]


def assemble(parts: Iterable[tuple[Shard, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole tensors of flat shards, as soon as each is complete; a copy where there is more than one shard."""
    held: dict[str, list[tuple[Shard, torch.Tensor]]] = {}
    for shard, flat in parts:
        if not shard.num_elements:
            continue
        found = held.setdefault(shard.name, [])
        found.append((shard, flat))
        if sum(s.num_elements for s, _ in found) == prod(shard.shape):
            yield shard.name, _joined(found)
            del held[shard.name]
    if held:
        raise ValueError(f"of {len(held)} parameters not all has arrived, such as {min(held)}")


def _joined(found: list[tuple[Shard, torch.Tensor]]) -> torch.Tensor:
    shard, flat = found[0]
    if len(found) > 1:
        flat = flat.new_empty(prod(shard.shape))
        for part, own in found:
            box = flat.view(shard.shape if len(part.offset) == len(shard.shape) else -1)
            for dimension, (first, length) in enumerate(zip(part.offset, part.size, strict=True)):
                box = box.narrow(dimension, first, length)
            box.copy_(own.view(part.size))
    return flat.view(shard.shape)
