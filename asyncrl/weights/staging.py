"""The trainer's copy of its weights that a push reads, so that the next step may change the originals meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from asyncrl.errors import RunFailed


class StagedWeights:
    """The trained parameters of a model in one flat buffer of one dtype, with a named view of each.

    Tied parameters are stored once, under the first name (as `named_parameters` gives them).
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        shapes = [(name, tuple(p.shape), p.numel()) for name, p in model.named_parameters() if p.requires_grad]
        self.flat = torch.empty(sum(n for _, _, n in shapes), dtype=dtype, device=device)
        views = self.flat.split([n for _, _, n in shapes])
        self._views = {name: view.view(shape) for (name, shape, _), view in zip(shapes, views, strict=True)}

    @torch.no_grad()
    def copy_from(self, model: torch.nn.Module) -> None:
        """Cast and copy every parameter; a few hundredths of a second per 100 M parameters on a CPU.

        Raises RunFailed if a copy is not finite: such weights must never reach a generator.
        """
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            view = self._views[name]
            view.copy_(parameter)
            # A sum is NaN or infinite if any summand is, and costs no memory.
            if not torch.isfinite(view.sum(dtype=torch.float32)):
                raise RunFailed(
                    f"the weights {name} are not finite in {self.flat.dtype}; they were not sent and not saved. "
                    "Resume with a lower trainer.learning_rate or trainer.max_grad_norm"
                )

    @property
    def num_bytes(self) -> int:
        return self.flat.numel() * self.flat.element_size()

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, view) in the order of the flat buffer."""
        yield from self._views.items()
