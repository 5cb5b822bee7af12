"""Low-rank adapters as they are named, sent and merged: W = W0 + scale B A (LoRA, arXiv:2106.09685).

Trainer and engine each have the base; only A and B travel. Names are peft's: `<module>.lora_A.default.weight`, and of
an embedding `<module>.lora_embedding_A.default`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

_LINEAR = (".lora_A.default.weight", ".lora_B.default.weight")
_EMBEDDING = (".lora_embedding_A.default", ".lora_embedding_B.default")


@dataclass(frozen=True)
class Adapters:
    """How they are merged."""

    scale: float
    transposed: tuple[str, ...] = ()
    """Adapted modules whose weight in the base is stored [in, out]."""


def merge(
    base: Iterable[tuple[str, torch.Tensor]], adapters: Mapping[str, torch.Tensor], how: Adapters
) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights of the base in its order, those with an adapter as W0 + scale B A; dtypes of the base, fp32 inside.

    A [rank, in], B [out, rank]; W0 [out, in], of an embedding and of the modules in `how.transposed` [in, out]. Raises
    ValueError if an adapter is of no known kind, or has no weight to be added to.
    """
    modules = adapted_modules(adapters)
    owners, left = weights_of(modules), set(modules)
    for name, weight in base:
        module = owners.get(name)
        if module is None:
            yield name, weight
            continue
        left.discard(module)
        delta = _product(adapters, module).to(weight.device)
        if module in how.transposed or module + _EMBEDDING[0] in adapters:
            delta = delta.T
        yield name, torch.add(weight.float(), delta, alpha=how.scale).to(weight.dtype)
    if left:
        raise ValueError(f"the base has no weight for {len(left)} adapters, such as {min(left)}")


def adapted_modules(names: Iterable[str]) -> set[str]:
    """The modules that parameters of these names adapt. Raises ValueError for one that is not half of a pair."""
    names = set(names)
    found = set()
    for first, second in (_LINEAR, _EMBEDDING):
        pairs = {n.removesuffix(first) for n in names if n.endswith(first)}
        found |= pairs
        names -= {module + half for module in pairs if module + second in names for half in (first, second)}
    if names:
        raise ValueError(f"{len(names)} trained tensors are no adapters that can be merged, such as {min(names)}")
    return found


def weights_of(modules: Iterable[str]) -> dict[str, str]:
    """The module by the name of its weight in the base, which may lack the first part, as in folders of a base model
    (GPT-2's `transformer.`)."""
    modules = list(modules)
    short = {f"{module.partition('.')[2]}.weight": module for module in modules}
    return short | {f"{module}.weight": module for module in modules}


def _product(adapters: Mapping[str, torch.Tensor], module: str) -> torch.Tensor:
    a, b = next(kind for kind in (_LINEAR, _EMBEDDING) if module + kind[0] in adapters)
    return adapters[module + b].float() @ adapters[module + a].float()
