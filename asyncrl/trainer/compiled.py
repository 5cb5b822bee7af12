"""A GPU's layers are compiled when the model is loaded, once for rows of any length: better then than in a step.

A layer is one graph, attention included. One that cannot be (it looks at how many tokens an expert got, say) runs as it
is, with attention compiled alone.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from asyncrl.errors import RunFailed
from asyncrl.trainer.attention import windows_of
from asyncrl.trainer.fit import ordinary_tokens, together
from asyncrl.trainer.model import Policy
from asyncrl.trainer.packing import pack_text

logger = logging.getLogger(__name__)

_SHORT, _LONG = 40, 420
"""Tokens of rows of one and of several of FlexAttention's blocks."""
_GRAPHS = 64
"""Of all models, with and without gradients, above and below their windows."""


@torch.no_grad()
def compile_layers(model: Any, backend: str = "inductor") -> bool:
    """Have each layer compiled in its next pass, if all can be one graph; which is tried on a short row, and said if
    not."""
    torch._dynamo.config.recompile_limit = _GRAPHS
    layers = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    for layer in layers:
        layer.compile(backend="eager", fullgraph=True, dynamic=True)
    try:
        together(model, [ordinary_tokens(model, _SHORT)])
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        for layer in layers:
            layer._compiled_call_impl = None
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        name = type(layers[0]).__name__ if layers else "model"
        logger.warning("%s is not compiled, which makes a step slower: %s", name, reason)
        return False
    finally:
        torch._dynamo.reset()
    for layer in layers:
        layer.compile(backend=backend, fullgraph=True, dynamic=True)
    return True


def warm_up(policy: Policy, device: torch.device, most: int) -> None:
    """Passes of rows up to `most` tokens, with gradients that are zero and without any. Raises RunFailed."""
    lengths = [_SHORT, _LONG, *(window + _SHORT for window in windows_of(policy.model) if window)]
    try:
        for length in sorted(min(length, most) for length in lengths):
            row = pack_text(ordinary_tokens(policy.model, length), device)
            with torch.no_grad():
                policy(row, 1.0)
            (0.0 * policy(row, 1.0)[0].sum()).backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        line = str(error).splitlines()[0]
        raise RunFailed(f"model: its layers do not run on this GPU: {line}") from error
