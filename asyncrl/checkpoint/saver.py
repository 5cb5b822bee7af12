"""Saving beside training: the copy of the state runs in a thread while the next forward and backward pass goes on.

    trainer   update k | start | forward, backward ........ | wait_copied | update k+1 | ...
    thread              copy to host buffers .. | consume: write files or send ........... |

Between two updates nobody changes weights or optimizer state, so only the next change waits for the copy (the idea
of DataStates-LLM). Who waits: `wait_copied` for the copy, `start` and `wait` for the save before. Unblocked by: the
thread, by success or by error; the deadline.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from asyncrl.errors import DeadlineExceeded

_ALIGNMENT = 64
"""Bytes, of the start of a tensor in a room for several."""

Consume = Callable[[dict[str, Tensor]], None]


class _Save:
    """A save in flight: what it waits for, and its error if it had one that nobody was told of."""

    def __init__(self) -> None:
        self.copied = threading.Event()
        self.ended = threading.Event()
        self.error: BaseException | None = None


class BackgroundSaver:
    """One save at a time. Keeps one host copy of the state for reuse; of tensors on a GPU in one pinned room.

    `deadline_s`: the longest that `start` waits for the save before, and `wait_copied` for the copy.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._buffers: dict[str, Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        self._save: _Save | None = None

    def start(self, tensors: Mapping[str, Tensor], consume: Consume) -> None:
        """Copy the tensors in a thread, then call `consume` there with the copies, in the order of `tensors`.

        The tensors must not change before `wait_copied` has returned. The copies are contiguous, and `consume` must
        not keep them: the next save overwrites them. Waits for the save before, and raises what it raised.
        """
        self.wait(self._deadline_s)
        device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        ready: torch.cuda.Event | None = None
        if device is not None:
            self._stream = self._stream or torch.cuda.Stream(device)
            # The last update may still be queued: the copy starts behind it, not behind the host.
            ready = torch.cuda.current_stream(device).record_event()
        self._save = _Save()
        arguments = (self._save, dict(tensors), ready, consume)
        # A daemon: a `consume` that hangs must not keep the process from ending.
        threading.Thread(target=self._run, args=arguments, name="background-saver", daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether a save is in flight."""
        return self._save is not None and not self._save.ended.is_set()

    def wait_copied(self) -> float:
        """Block until the tensors may change; returns the seconds that took, 0.0 if no copy is in flight.

        An error in the copy ends the wait too; `wait` or the next `start` raises it.
        """
        if self._save is None or self._save.copied.is_set():
            return 0.0
        began = time.perf_counter()
        if not self._save.copied.wait(self._deadline_s):
            raise DeadlineExceeded(
                f"the copy of the state to host memory did not end in {self._deadline_s:.0f} s; "
                "allow more time for a save, or free memory on this machine"
            )
        return time.perf_counter() - began

    def wait(self, deadline_s: float) -> None:
        """Block until no save is in flight. Raises its error (once), or DeadlineExceeded after `deadline_s`."""
        save = self._save
        if save is None:
            return
        if not save.ended.wait(deadline_s):
            doing = "being written or sent" if save.copied.is_set() else "being copied to host memory"
            raise DeadlineExceeded(
                f"after {deadline_s:.0f} s the state of an earlier save is still {doing}; "
                "allow more time for a save, or save less often"
            )
        error, save.error = save.error, None
        if error is not None:
            raise error

    def _run(self, save: _Save, tensors: dict[str, Tensor], ready: torch.cuda.Event | None, consume: Consume) -> None:
        try:
            self._copy(tensors, ready)
            save.copied.set()
            consume(dict(self._buffers))
        except BaseException as error:
            save.error = error
        finally:
            save.copied.set()
            save.ended.set()

    def _copy(self, tensors: dict[str, Tensor], ready: torch.cuda.Event | None) -> None:
        on_gpu = {name: tensor for name, tensor in tensors.items() if tensor.is_cuda}
        if not all(_fits(self._buffers.get(name), tensor) for name, tensor in on_gpu.items()):
            self._buffers.clear()  # first, for host memory may not hold two
            self._buffers = room_for(on_gpu, pinned=True)
        self._buffers = {name: self._buffer(name, tensor) for name, tensor in tensors.items()}
        with torch.cuda.stream(self._stream if ready else None):
            if ready:
                torch.cuda.current_stream().wait_event(ready)
            for name, tensor in tensors.items():
                self._buffers[name].copy_(tensor.detach(), non_blocking=True)
            if ready:
                torch.cuda.current_stream().synchronize()

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        return buffer if _fits(buffer, tensor) else torch.empty(tensor.shape, dtype=tensor.dtype)


def _fits(buffer: Tensor | None, tensor: Tensor) -> bool:
    return buffer is not None and (buffer.shape, buffer.dtype) == (tensor.shape, tensor.dtype)


def room_for(tensors: Mapping[str, Tensor], pinned: bool) -> dict[str, Tensor]:
    """Host tensors of the same shapes and types, by name, in one allocation: torch's pinned memory comes in powers of
    two, up to twice what each of them takes."""
    sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors.values()]
    room = torch.empty(sum(sizes), dtype=torch.uint8)
    if pinned and room.nbytes:
        runtime = torch.cuda.cudart()
        torch.cuda.check_error(runtime.cudaHostRegister(room.data_ptr(), room.nbytes, 0))
        weakref.finalize(room.untyped_storage(), runtime.cudaHostUnregister, room.data_ptr())
    parts = zip(room.split(sizes), tensors.items(), strict=True)
    return {name: part[: t.nbytes].view(t.dtype).view(t.shape) for part, (name, t) in parts}
