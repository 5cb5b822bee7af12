"""One trained module: its gradients, its AdamW and what of both goes into a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from asyncrl.trainer.precision import loss_scale, round_masters
from asyncrl.trainer.sharding import fill, held, master

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW over the masters of the parameters of `module` that need a gradient; `prefix` starts their names in a
    checkpoint.

    Weight decay is for matrices: scales of norms, biases and all else of one dimension are not pulled to zero.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        learning_rate: float,
        settings: Mapping[str, Any],
        prefix: str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """dtype: of products."""
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.named = {name: master(p) for name, p in self.parameters.items()}
        matrices = [p for p in self.named.values() if p.ndim > 1]
        vectors = {"params": [p for p in self.named.values() if p.ndim <= 1], "weight_decay": 0.0}
        self.adamw = torch.optim.AdamW([{"params": matrices}, vectors], lr=learning_rate, fused=True, **settings)
        self.prefix = prefix
        self._scaler = loss_scale(dtype, next(iter(self.named.values())).device)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """What to compute the gradients of; they are scaled back by `clip`."""
        whole: torch.Tensor = self._scaler.scale(loss)
        return whole

    def zero_grad(self) -> None:
        # Zeros, not None: a step in which every group was skipped then decays momentum as a full pass would.
        for parameter in self.named.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.zero_()

    def divide_gradients(self, divisor: float) -> None:
        if divisor != 1.0:
            for parameter in self.named.values():
                parameter.grad.div_(divisor)

    def clip(self, max_norm: float) -> float:
        """The gradient's global L2 norm before it is scaled down to `max_norm`."""
        self._scaler.unscale_(self.adamw)
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), max_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def step(self, learning_rate: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        self._scaler.step(self.adamw)
        self._scaler.update()
        round_masters(self.parameters)

    def skip(self) -> None:
        """Instead of `step`: the gradient is not finite."""
        self._scaler.update()

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters and moments by name: the tensors themselves, not copies. Of one that is sharded the rows that
        this rank is the first to hold, as `name@<first row>`."""
        tensors = {}
        for name, parameter in self.named.items():
            tensors |= held(f"{self.prefix}model.{name}", parameter)
            for key, value in self.adamw.state.get(parameter, {}).items():
                tensors |= held(f"{self.prefix}optimizer.{key}.{name}", value)
        if scale := self._scaler.state_dict():
            tensors[f"{self.prefix}loss_scale"] = torch.tensor([scale["scale"], scale["_growth_tracker"]])
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Any]) -> None:
        """Inverse of `state`, bit for bit, from whole tensors, or what is sliced as they are, of which only this rank's
        rows are read. Raises KeyError if it is of another model."""
        for name, parameter in self.named.items():
            fill(parameter, tensors[f"{self.prefix}model.{name}"])
            saved = {key: f"{self.prefix}optimizer.{key}.{name}" for key in _MOMENTS}
            if all(key in tensors for key in saved.values()):
                self.adamw.state[parameter] = {
                    # Fused kernels want the step beside the moments.
                    key: tensors[where][...].to(parameter.device, copy=True)
                    if key == "step"
                    else fill(torch.empty_like(parameter), tensors[where])
                    for key, where in saved.items()
                }
        round_masters(self.parameters)
        scale = tensors.get(f"{self.prefix}loss_scale")
        if scale is not None and (state := self._scaler.state_dict()):
            self._scaler.load_state_dict(state | {"scale": float(scale[0]), "_growth_tracker": int(scale[1])})
