"""One trained module: its gradients, its optimizer and what of both goes into a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from asyncrl.recipe.trainer import OptimizerRecipe
from asyncrl.trainer.loading import some
from asyncrl.trainer.precision import loss_scale, round_masters
from asyncrl.trainer.sharding import fill, held, master, own_rows

logger = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq")
_ADAMW, _MUON = ("step", *_MOMENTS), ("momentum_buffer",)
"""What they keep of each parameter."""
_LARGE = (*_MOMENTS, *_MUON)
"""What of that is as large as the parameter."""


class Optimizer:
    """AdamW, with Muon for the hidden matrices if the recipe says so, over the masters of the parameters of `module`
    that need a gradient; `prefix` starts their names in a checkpoint."""

    def __init__(
        self,
        module: torch.nn.Module,
        learning_rate: float,
        recipe: OptimizerRecipe,
        prefix: str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """dtype: of products."""
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.named = {name: master(p) for name, p in self.parameters.items()}
        self._muon = hidden_matrices(module) & self.parameters.keys() if recipe.name == "muon" else set()
        self._offload = recipe.offload
        parts = [[name for name in self.named if name not in self._muon], [n for n in self.named if n in self._muon]]
        if self._offload:
            # Each by itself, so that the states of one at a time are beside the weights.
            parts = [[name] for name in self.named]
        self._owners: dict[str, torch.optim.Optimizer] = {}
        for names in filter(None, parts):
            make = self._make_muon if names[0] in self._muon else self._make_adamw
            self._owners |= dict.fromkeys(names, make(names, learning_rate, recipe))
        self.optimizers = list(dict.fromkeys(self._owners.values()))
        self.prefix = prefix
        self._scaler = loss_scale(dtype, next(iter(self.named.values())).device)

    def _make_adamw(self, names: list[str], learning_rate: float, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
        named = {name: self.named[name] for name in names}
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in named.items() if is_decayed(name, p)], "weight_decay": recipe.weight_decay},
            {"params": [p for name, p in named.items() if not is_decayed(name, p)], "weight_decay": 0.0},
        ]
        betas = recipe.betas[0], recipe.betas[1]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=recipe.eps, fused=True)

    def _make_muon(self, names: list[str], learning_rate: float, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
        return torch.optim.Muon(
            [self.named[name] for name in names],
            lr=learning_rate,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            adjust_lr_fn="match_rms_adamw",
        )

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
        for optimizer in self.optimizers:
            self._scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), max_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def step(self, learning_rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            with self._at_hand(optimizer):
                self._scaler.step(optimizer)
        self._scaler.update()
        round_masters(self.parameters)

    @contextmanager
    def _at_hand(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """The states of its parameters are beside them; with `offload` in host memory before and after."""
        if not self._offload:
            yield
            return
        kept = {p: {key: state[key] for key in _LARGE if key in state} for p, state in optimizer.state.items()}
        for parameter, states in kept.items():
            optimizer.state[parameter].update({key: host.to(parameter.device) for key, host in states.items()})
        yield
        for parameter, state in optimizer.state.items():
            state.update(_on_host(state, kept.get(parameter, {})))

    def skip(self) -> None:
        """Instead of `step`: the gradient is not finite."""
        self._scaler.update()

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters and moments by name: the tensors themselves, not copies. Of one that is sharded the rows that
        this rank is the first to hold, as `name@<first row>`."""
        tensors = {}
        for name, parameter in self.named.items():
            tensors |= held(f"{self.prefix}model.{name}", parameter)
            for key, value in self._states(name).get(parameter, {}).items():
                tensors |= held(f"{self.prefix}optimizer.{key}.{name}", value)
        if scale := self._scaler.state_dict():
            tensors[f"{self.prefix}loss_scale"] = torch.tensor([scale["scale"], scale["_growth_tracker"]])
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Any]) -> None:
        """Inverse of `state`, bit for bit, from whole tensors, or what is sliced as they are, of which only this rank's
        rows are read. Raises KeyError if it is of another model."""
        anew = []
        for name, parameter in self.named.items():
            fill(parameter, tensors[f"{self.prefix}model.{name}"])
            kept = _MUON if name in self._muon else _ADAMW
            saved = {key: f"{self.prefix}optimizer.{key}.{name}" for key in kept}
            if all(key in tensors for key in saved.values()):
                state = {
                    # Fused kernels want the step beside the moments.
                    key: tensors[where][...].to(parameter.device, copy=True)
                    if key == "step"
                    else fill(torch.empty_like(parameter), tensors[where])
                    for key, where in saved.items()
                }
                self._states(name)[parameter] = state | (_on_host(state, {}) if self._offload else {})
            elif any(f"{self.prefix}optimizer.{key}.{name}" in tensors for key in (*_ADAMW, *_MUON)):
                anew.append(name)
        if anew:
            logger.warning(
                "trainer.optimizer: the checkpoint is of another optimizer, so that the running means of %s begin anew",
                some(anew),
            )
        round_masters(self.parameters)
        scale = tensors.get(f"{self.prefix}loss_scale")
        if scale is not None and (state := self._scaler.state_dict()):
            self._scaler.load_state_dict(state | {"scale": float(scale[0]), "_growth_tracker": int(scale[1])})

    def _states(self, name: str) -> dict[Any, Any]:
        """Of all parameters that have the same optimizer as this one."""
        return self._owners[name].state


def _on_host(state: Mapping[str, torch.Tensor], kept: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is large of a state, in host memory: in that of `kept`, which it came from, if it did."""
    found = {}
    for key in (key for key in _LARGE if key in state):
        value, host = state[key], kept.get(key)
        if host is None:
            host = value.to("cpu")
            # Of a sharded one the rows are not to be had as a tensor that is pinned.
            found[key] = host.pin_memory() if value.is_cuda and not isinstance(value, DTensor) else host
        else:
            own_rows(host)[1].copy_(own_rows(value)[1])
            found[key] = host
    return found


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay pulls a parameter to zero: a matrix, embeddings too, but no norm and no bias, of whatever
    class and shape (Cohere's norms and gpt-oss's biases of experts have two dimensions)."""
    *modules, last = name.split(".")
    return parameter.ndim > 1 and "norm" not in "".join(modules[-1:]).lower() and not last.endswith("bias")


def hidden_matrices(model: torch.nn.Module) -> set[str]:
    """Names of the matrices between embeddings and output head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    ends = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    ends |= {id(head.weight)} if head is not None else set()
    return {name for name, p in model.named_parameters() if p.ndim == 2 and id(p) not in ends and is_decayed(name, p)}
