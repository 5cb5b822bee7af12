"""Weights in shared memory: the trainer's own copies lie in /dev/shm, where every worker of the node maps them.

Nothing is sent at all. A worker needs no connection to the trainer, nobody waits for anybody, and replicas can be
updated one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from asyncrl.weights.files import open_own
from asyncrl.weights.flat import FlatSender
from asyncrl.weights.staging import StagedWeights


class Sender(FlatSender):
    def copy(self, version: int, staged: StagedWeights) -> Any:
        return str(staged.path)


class Receiver:
    """Of a worker on the trainer's node."""

    def __init__(self, endpoints: list[dict[str, Any]], rank: int, world_size: int, timeout_s: float) -> None:
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
