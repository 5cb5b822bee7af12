"""A transport that is not in the package: the bytes of each rank through a socket in the file system."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import torch

from asyncrl.weights.flat import FlatSender
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.transport import SenderConfig


class Sender(FlatSender):
    def __init__(self, config: SenderConfig, staged: StagedWeights) -> None:
        super().__init__(config, staged)
        self._path = str(config.folder / f"{config.rank}.socket")
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.settimeout(config.timeout_s)
        self._listening.bind(self._path)
        self._listening.listen()

    def reach(self) -> dict[str, Any]:
        return {"path": self._path}

    def join(self, world_size: int) -> None:
        self._workers = [self._listening.accept()[0] for _ in range(1, world_size)]

    def copy(self, version: int, staged: StagedWeights) -> Any:
        return None

    def send(self, staged: StagedWeights) -> int:
        for worker in self._workers:
            worker.sendall(staged.flat.view(torch.uint8).numpy().data)
        return staged.flat.nbytes

    def close(self) -> None:
        for one in (self._listening, *self._workers):
            one.close()


class Receiver:
    def __init__(self, endpoints: list[dict[str, Any]], rank: int, world_size: int, timeout_s: float) -> None:
        self._ranks = [socket.socket(socket.AF_UNIX) for _ in endpoints]
        for one, endpoint in zip(self._ranks, endpoints, strict=True):
            one.settimeout(timeout_s)
            one.connect(endpoint["path"])

    def receive(self, copies: list[Any], sizes: list[int], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        for one, size in zip(self._ranks, sizes, strict=True):
            flat = torch.empty(size, dtype=dtype)
            with one.makefile("rb") as file:
                assert file.readinto(flat.view(torch.uint8).numpy().data) == flat.nbytes
            yield flat

    def close(self) -> None:
        for one in self._ranks:
            one.close()
