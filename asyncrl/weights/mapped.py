"""Weights through files: workers map the trainer's own copy of the weights, or read one from a shared disk.

`shared_memory`: the staging buffers themselves lie in /dev/shm, where every worker of the node sees them: nothing is
sent at all. `disk`: each push is written to a folder that all nodes see. Either way a worker needs no connection to
the trainer, nobody waits for anybody, and replicas can be updated one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from asyncrl.weights.files import open_file, open_own


class SharedMemoryReceiver:
    """A worker's end, on the trainer's node."""

    def __init__(self, ends: list[dict[str, Any]], rank: int, world_size: int, timeout_s: float) -> None:
        # Mapped once: the page tables of a model cost as much as a copy of it.
        self._maps: dict[str, torch.Tensor] = {}

    def receive(self, copies: list[Any], sizes: list[int], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        for path, size in zip(copies, sizes, strict=True):
            if path not in self._maps:
                try:
                    self._maps[path] = open_own(Path(path), size, dtype)
                except FileNotFoundError:
                    raise RuntimeError(
                        f"{path} is not on this node, but the trainer is; set weights.channel=gloo"
                    ) from None
            yield self._maps[path]

    def close(self) -> None:
        self._maps = {}


class DiskReceiver:
    """The end of a worker that sees the trainer's disk."""

    def __init__(self, ends: list[dict[str, Any]], rank: int, world_size: int, timeout_s: float) -> None:
        """Nothing is held open."""

    def receive(self, copies: list[Any], sizes: list[int], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        for path, size in zip(copies, sizes, strict=True):
            yield open_file(Path(path), size, dtype)

    def close(self) -> None:
        """Nothing is held open."""
