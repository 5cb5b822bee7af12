"""Weights over gloo, between any two CPU processes: each rank of the trainer broadcasts its buffer to all workers.

vLLM's own `nccl` engine needs GPUs; between CPUs this takes its place. A group has one rank of the trainer, as its
rank 0, and every engine worker. Every collective has a deadline.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import BroadcastOptions, ProcessGroupGloo, TCPStore

# Everyone who is to join is up and has been called: who is not here soon has died, and those who wait for it stand
# still meanwhile.
_JOIN_S = 60.0


class GlooReceiver:
    """A worker's end: one group with each rank of the trainer."""

    def __init__(self, ends: list[dict[str, Any]], rank: int, world_size: int, timeout_s: float) -> None:
        self._groups = []
        for end in ends:
            timeout = timedelta(seconds=timeout_s)
            store = TCPStore(end["address"], end["port"], is_master=False, timeout=timeout)
            self._groups.append(_group(store, rank, world_size, timeout_s))

    def receive(self, copies: list[Any], sizes: list[int], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        flats = [torch.empty(size, dtype=dtype) for size in sizes]
        coming = [group.broadcast([flat], _from_trainer()) for group, flat in zip(self._groups, flats, strict=True)]
        for flat, work in zip(flats, coming, strict=True):
            work.wait()
            yield flat

    def close(self) -> None:
        for group in self._groups:
            group.abort()


class GlooEnd:
    """A rank of the trainer: listens at `address`."""

    group: ProcessGroupGloo | None = None

    def __init__(self, address: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        timeout = timedelta(seconds=timeout_s)
        self._store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        self.reach = {"address": address, "port": self._store.port}

    def join(self, world_size: int) -> None:
        self.group = _group(self._store, 0, world_size, self._timeout_s)

    def send(self, flat: torch.Tensor) -> None:
        assert self.group is not None
        self.group.broadcast([flat], _from_trainer()).wait()

    def close(self) -> None:
        if self.group is not None:
            self.group.abort()


def _group(store: TCPStore, rank: int, world_size: int, timeout_s: float) -> ProcessGroupGloo:
    group = ProcessGroupGloo(store, rank, world_size, timedelta(seconds=min(timeout_s, _JOIN_S)))
    group._set_default_timeout(timedelta(seconds=timeout_s))
    return group


def _from_trainer() -> BroadcastOptions:
    options = BroadcastOptions()
    options.rootRank = 0
    return options
