"""The trainer's copies of its weights that a weight sync reads: the next step may change the originals meanwhile."""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from asyncrl.errors import DeadlineExceeded, RunFailed
from asyncrl.weights.files import create_file
from asyncrl.weights.shards import Held


class StagedWeights:
    """What this rank holds of the weights that are sent, in one flat buffer of one dtype, with a view of each shard."""

    def __init__(
        self, weights: Sequence[Held], dtype: torch.dtype, device: torch.device, path: Path | None = None
    ) -> None:
        """path: where the buffer is to lie in shared memory, if it is."""
        self._originals = [held.tensor for held in weights]
        self.shards = [shard for held in weights for shard in held.shards]
        sizes = [tensor.numel() for tensor in self._originals]
        self.path = path
        if path is None:
            self.flat = torch.empty(sum(sizes), dtype=dtype, device=device)
        else:
            self.flat = create_file(path, sum(sizes), dtype)
            weakref.finalize(self, path.unlink, missing_ok=True)
        self._copies = self.flat.split(sizes)
        self.views = self.flat.split([shard.num_elements for shard in self.shards])

    @torch.no_grad()
    def copy(self) -> None:
        """Cast and copy every tensor; a few hundredths of a second per 100 M parameters on a CPU.

        Raises RunFailed if a copy is not finite: such weights must never reach a generator. Whoever looks waits for a
        GPU, so it is done once for all, and then the copy is complete.
        """
        for copy, original in zip(self._copies, self._originals, strict=True):
            copy.copy_(original.flatten())
        if not _is_finite(self.flat):
            require_finite({shard.name: view for shard, view in zip(self.shards, self.views, strict=True)})


def require_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Raises RunFailed, naming the first tensor that is not finite."""
    for name, tensor in weights.items():
        if not _is_finite(tensor):
            raise RunFailed(
                f"the weights {name} are not finite in {tensor.dtype}; they were not sent and not saved. "
                "Resume with a lower trainer.learning_rate or trainer.max_grad_norm"
            )


def _is_finite(tensor: torch.Tensor) -> bool:
    # NaN if any element is; five times as fast as a sum, and it takes no memory.
    return not tensor.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


class Staging:
    """Two copies: a push reads one while the other takes the next version.

    The weights of a version are copied as late as possible: when a push asks for them, beside the step that has begun
    meanwhile, or right before that step changes them. Used by two threads, of the steps and of the pushes.
    """

    def __init__(
        self,
        weights: Sequence[Held],
        version: int,
        dtype: torch.dtype,
        device: torch.device,
        folder: Path | None = None,
    ) -> None:
        """folder: in shared memory, if the copies are to be seen by other processes."""
        self._version = version
        self._model_on = weights[0].tensor.device
        self._written = _mark(self._model_on)
        # Names of their own: who has mapped the copies of a trainer that died must not take these for them.
        paths = [folder / uuid.uuid4().hex if folder else None for _ in range(2)]
        self._next, self._sending = (StagedWeights(weights, dtype, device, path) for path in paths)
        self._next_version: int | None = None
        self._sending_version: int | None = None
        self._changed = threading.Condition()

    @property
    def layout(self) -> StagedWeights:
        """Either copy: they are laid out alike."""
        return self._next

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
        """The model has the weights of this version now. Called by the thread that has changed them, on its stream."""
        with self._changed:
            self._version, self._written = version, _mark(self._model_on)

    def _stage(self) -> None:
        if self._version not in (self._next_version, self._sending_version):
            # If the copy fails, the version that was there is gone too.
            self._next_version = None
            # The thread that pushes has a stream of its own, on which the optimizer's kernels may still be awaited.
            if self._written is not None:
                torch.cuda.current_stream(self._model_on).wait_event(self._written)
            self._next.copy()
            self._next_version = self._version


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """The end of all that this thread has given a GPU to do."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
