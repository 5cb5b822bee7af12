"""Mixed precision: a model holds its weights in the type of the products, the optimizer changes fp32 masters of them
(Micikevicius et al. 2018, section 3.1).

What is saved, pushed and exported are the masters (`trainer.sharding.master`). Parameters that FSDP2 has sharded are
masters themselves: it rounds what it gathers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.distributed.tensor import DTensor

from asyncrl.trainer.export import exported_type

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Of products, by `trainer.precision`."""
_GROWTH_STEPS = 400
"""Updates without an overflow after which the loss is scaled by twice as much: as verl has it for RL (its PR 4036)."""


@torch.no_grad()
def place(module: torch.nn.Module, device: torch.device) -> None:
    """Put on the device what is not sharded; weights that are trained in fp32."""
    for parameter in module.parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(device, torch.float32)
    module.to(device)


def hold(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Round the weights to `dtype`, but for those that the model's class keeps in fp32. The gradients of one that is
    trained are added to its master's, in fp32. A frozen one that rounding changes has its master on the host."""
    for name, parameter in model.named_parameters():
        wanted = exported_type(model, name, dtype)
        if isinstance(parameter, DTensor) or parameter.dtype != torch.float32 or wanted == torch.float32:
            continue
        exact, parameter.data = parameter.data, parameter.data.to(dtype)
        if parameter.requires_grad:
            parameter.master = torch.nn.Parameter(exact)
            parameter.register_post_accumulate_grad_hook(_add_to_master)
        elif not torch.equal(parameter.data.to(exact.dtype), exact):
            parameter.master = exact.cpu()


def loss_scale(dtype: torch.dtype, device: torch.device) -> torch.amp.GradScaler:
    """For fp16, whose smallest number is 6e-8: the loss is multiplied by as much as its gradients bear (Micikevicius et
    al. 2018, section 3.2), a power of two. For all other types it does nothing."""
    scaler = torch.amp.GradScaler(device.type, growth_interval=_GROWTH_STEPS, enabled=dtype == torch.float16)
    # It begins with its first loss; a step may have none.
    scaler.scale(torch.zeros(1, device=device))
    return scaler


def _add_to_master(parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    if parameter.master.grad is None:
        parameter.master.grad = parameter.grad.to(parameter.master.dtype)
    else:
        parameter.master.grad.add_(parameter.grad)
    parameter.grad = None


@torch.no_grad()
def round_masters(named: Mapping[str, torch.Tensor]) -> None:
    """Those of these parameters that have masters, which have changed, take their values."""
    rounded = [parameter for parameter in named.values() if hasattr(parameter, "master")]
    if rounded:
        torch._foreach_copy_(rounded, [parameter.master for parameter in rounded])
