"""A model's outputs in float64, whatever its weights are held in: what is left between two ways to compute them is no
rounding.

A weight is cast where an operation takes it and forgotten after it, so a model needs the room of one more weight, not
of a second model; nothing in it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_ROUNDED = (torch.float32, torch.bfloat16, torch.float16)
_CASTS = (torch.Tensor.float, torch.Tensor.bfloat16, torch.Tensor.half)
_PICKS = (torch.Tensor.__getitem__, torch.nn.functional.embedding)
"""Take a small part of a weight: what they give is cast instead."""


@contextmanager
def exactly(model: Any) -> Iterator[None]:
    """Calls of a transformers model in here compute and return float64. RuntimeError from one of its kernels that
    knows no float64."""
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    experts = model.get_experts_implementation()
    model.set_experts_implementation({name: kind and "eager" for name, kind in experts.items()})
    try:
        with _Float64():
            yield
    finally:
        model.set_experts_implementation(experts)
        for module, before in buffers:
            # A rotary embedding may have put a float64 one in its place.
            module._buffers.update(before)


class _Float64(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "__get__":
            # A property, such as the dtype of a weight.
            return func(*args, **kwargs)
        if func in _PICKS:
            return _cast(func(*args, **kwargs))
        args, kwargs = tree_map(_cast, (args, kwargs))
        return (torch.Tensor.double if func in _CASTS else func)(*args, **kwargs)


def _cast(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return x.double() if x.dtype in _ROUNDED else x
    return torch.float64 if isinstance(x, torch.dtype) and x in _ROUNDED else x
