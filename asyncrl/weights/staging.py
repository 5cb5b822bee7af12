"""The trainer's copies of its weights that a push reads, so that the next step may change the originals meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import torch

from asyncrl.errors import DeadlineExceeded, RunFailed


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
            require_finite({name: view})

    @property
    def num_bytes(self) -> int:
        return self.flat.numel() * self.flat.element_size()

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, view) in the order of the flat buffer."""
        yield from self._views.items()


def require_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Raises RunFailed, naming the first tensor that is not finite."""
    for name, tensor in weights.items():
        # A sum is NaN or infinite if any summand is, and costs no memory.
        if not torch.isfinite(tensor.sum(dtype=torch.float32)):
            raise RunFailed(
                f"the weights {name} are not finite in {tensor.dtype}; they were not sent and not saved. "
                "Resume with a lower trainer.learning_rate or trainer.max_grad_norm"
            )


class Staging:
    """Two copies: a push reads one while the other takes the next version.

    The weights of a version are copied as late as possible: when a push asks for them, beside the step that has begun
    meanwhile, or right before that step changes them. Used by two threads, of the steps and of the pushes.
    """

    def __init__(self, model: torch.nn.Module, version: int, dtype: torch.dtype, device: torch.device) -> None:
        self._model = model
        self._version = version
        self._next, self._sending = (StagedWeights(model, dtype, device) for _ in range(2))
        self._next_version: int | None = None
        self._sending_version: int | None = None
        self._changed = threading.Condition()

    def send(self, version: int | None) -> tuple[int, StagedWeights]:
        """The copy to push of a version (None: of the one sent last, or else the model's), and which it is. It stays
        as it is until the next call. Raises RuntimeError if the version is not there."""
        with self._changed:
            if version is None:
                version = self._version if self._sending_version is None else self._sending_version
            if version == self._version:
                self._stage()
            if version not in (self._next_version, self._sending_version):
                raise RuntimeError(f"asked to publish version {version}, but the weights are of {self._version}")
            if version == self._next_version:
                self._next, self._sending = self._sending, self._next
                self._sending_version, self._next_version = version, None
                self._changed.notify_all()
            return version, self._sending

    def before_change(self, pushing: int, deadline_s: float) -> None:
        """The model's weights are about to change. `pushing`: version whose push was asked for, which it may still
        have to take its copy of (-1: none); an older one that was never asked for may be overwritten."""
        with self._changed:
            # A push of the present weights finds them staged, whenever it comes.
            if not self._changed.wait_for(
                lambda: self._next_version != pushing or pushing == self._version, deadline_s
            ):
                raise DeadlineExceeded(f"the push of version {pushing} did not take its copy in {deadline_s:.0f} s")
            self._stage()

    def changed(self, version: int) -> None:
        """The model has the weights of this version now."""
        with self._changed:
            self._version = version

    def _stage(self) -> None:
        if self._version not in (self._next_version, self._sending_version):
            # If the copy fails, the version that was there is gone too.
            self._next_version = None
            self._next.copy_from(self._model)
            self._next_version = self._version
