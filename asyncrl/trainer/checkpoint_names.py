"""Under which names weights travel: those of the model's checkpoint, which the engine loads too.

transformers joins what a checkpoint has apart (the experts of a layer become one parameter) and names some otherwise;
what it knows of the way back is used here, on stand-ins, to find which elements of a parameter are which tensor of the
checkpoint. So nothing is converted when weights are sent: only the plan of a push has other names.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

_WIDTH = 2
"""Last dimension of a stand-in: never split, so that a large model's are small."""


@dataclass(frozen=True)
class Part:
    """Elements [start, stop) of a parameter are this tensor of the checkpoint."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


def checkpoint_parts(model: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Part]]:
    """Of each parameter its parts in the order of its elements. One that is no run of elements in the checkpoint, or
    of whose way back nothing is known, is one part under its own name."""
    whole = {name: [Part(name, shape, 0, torch.Size(shape).numel())] for name, shape in shapes.items()}
    if not hasattr(model, "config"):
        return whole
    found: dict[str, list[Part]] = {name: [] for name in shapes}
    for tensor_name, stand_in in _reverted(model, shapes).items():
        owner, part = _part(tensor_name, stand_in, shapes)
        if owner is not None and part is not None:
            found[owner].append(part)
    for parts in found.values():
        parts.sort(key=lambda part: part.start)
    return {name: found[name] if _covers(found[name], whole[name][0].stop) else whole[name] for name in shapes}


def _reverted(model: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors made of stand-ins, whose elements are [place in `shapes`, place in the stand-in]."""
    from transformers.core_model_loading import revert_weight_conversion

    stand_ins = {}
    for place, (name, shape) in enumerate(shapes.items()):
        narrow = (*shape[:-1], _WIDTH) if len(shape) > 1 else shape
        numbers = torch.arange(torch.Size(narrow).numel()).view(narrow)
        stand_ins[name] = (place << 40) + numbers
    try:
        reverted: dict[str, torch.Tensor] = revert_weight_conversion(model, stand_ins)
    except (ValueError, RuntimeError, KeyError, AttributeError, IndexError):
        # One that counts on real sizes. What the engine makes of the model's own names is verified.
        return {}
    return reverted


def _part(
    name: str, stand_in: torch.Tensor, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, Part] | tuple[None, None]:
    numbers = stand_in.flatten()
    first = int(numbers[0])
    if not torch.equal(numbers, first + torch.arange(len(numbers))):
        return None, None
    owner = next(itertools.islice(shapes, first >> 40, None))
    first &= (1 << 40) - 1
    shape = tuple(stand_in.shape)
    if len(shapes[owner]) > 1:
        if not shape or shape[-1] != _WIDTH or first % _WIDTH:
            return None, None
        width = shapes[owner][-1]
        shape, first = (*shape[:-1], width), first // _WIDTH * width
    return owner, Part(name, shape, first, first + torch.Size(shape).numel())


def _covers(parts: list[Part], num_elements: int) -> bool:
    """Whether they are all elements, each once."""
    ends = [0, *(part.stop for part in parts)]
    return [part.start for part in parts] == ends[:-1] and ends[-1] == num_elements
