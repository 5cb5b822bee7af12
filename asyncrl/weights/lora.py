"""Low-rank adapters as they are named, sent and merged: W = W0 + scale B A (LoRA, arXiv:2106.09685).

Trainer and engine each have the base; only A and B travel. Names are peft's: `<module>.lora_A.default.weight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"


def merge(
    base: Iterable[tuple[str, torch.Tensor]], adapters: Mapping[str, torch.Tensor], scale: float
) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights of the base in its order, those with an adapter as W0 + scale B A; dtypes of the base, fp32 inside.

    W0 [out, in], A [rank, in], B [out, rank]. Raises ValueError if an adapter has no weight to be added to.
    """
    left = {name.removesuffix(_A) for name in adapters if name.endswith(_A)}
    for name, weight in base:
        module = name.removesuffix(".weight")
        if module not in left:
            yield name, weight
            continue
        left.discard(module)
        delta = adapters[module + _B].float() @ adapters[module + _A].float()
        yield name, torch.add(weight.float(), delta, alpha=scale).to(weight.dtype)
    if left:
        raise ValueError(f"the base has no weight for {len(left)} adapters, such as {min(left)}")
