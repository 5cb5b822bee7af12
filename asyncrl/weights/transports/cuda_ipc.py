"""Weights on a GPU that trainer and generators share: a worker maps the trainer's own copies, and nothing is sent.

A handle maps the whole block of CUDA's that a copy lies in. A worker opens each once, and closes it when it joins
again: what a trainer had that was killed is free then. torch counts who has opened a handle, for one each;
with several workers it takes the copies for used until the trainer ends, which is as long as it keeps them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import torch

from asyncrl.weights.flat import FlatSender
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.transport import SenderConfig


class Sender(FlatSender):
    def __init__(self, config: SenderConfig, staged: StagedWeights) -> None:
        super().__init__(config, staged)
        self._handles: dict[int, Any] = {}
        """Of the copies, by their addresses: each is handed out once."""

    def copy(self, version: int, staged: StagedWeights) -> Any:
        address = staged.flat.data_ptr()
        if address not in self._handles:
            self._handles[address] = handle(staged.flat)
        return self._handles[address]


def handle(flat: torch.Tensor) -> dict[str, Any]:
    """How other processes map a tensor [n] that lies on a GPU: in plain values, for all of them."""
    device, *rest = flat.untyped_storage()._share_cuda_()
    shared = [base64.b64encode(part).decode() if isinstance(part, bytes) else part for part in rest]
    return {"gpu": str(torch.cuda.get_device_properties(device).uuid), "storage": shared}


class Receiver:
    """Of a worker on the trainer's GPU."""

    def __init__(self, endpoints: list[dict[str, Any]], rank: int, world_size: int, timeout_s: float) -> None:
        self._maps: dict[str, torch.Tensor] = {}

    def receive(self, copies: list[Any], sizes: list[int], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        for copy, size in zip(copies, sizes, strict=True):
            key = repr(copy["storage"])
            if key not in self._maps:
                self._maps[key] = _open(copy, dtype)
            yield self._maps[key][:size]

    def close(self) -> None:
        self._maps = {}


def _open(copy: dict[str, Any], dtype: torch.dtype) -> torch.Tensor:
    """Raises RuntimeError on another GPU than the trainer's."""
    device = torch.accelerator.current_device_index()
    if (here := str(torch.cuda.get_device_properties(device).uuid)) != copy["gpu"]:
        raise RuntimeError(
            f"the generator is on GPU {here} and the trainer on {copy['gpu']}: cuda_ipc is for one GPU that both have "
            "shares of; set weights.channel=auto"
        )
    torch.cuda.init()
    parts = [base64.b64decode(part) if isinstance(part, str) else part for part in copy["storage"]]
    storage = torch.UntypedStorage._new_shared_cuda(device, *parts)
    return torch.empty(0, dtype=dtype, device=storage.device).set_(storage)
