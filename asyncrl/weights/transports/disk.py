"""Weights as files on a disk that all nodes see: each weight sync is one, of each rank, in the run directory.

A worker needs no connection to the trainer, nobody waits for anybody, and replicas can be updated one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from asyncrl.weights.files import open_file, owner_only
from asyncrl.weights.flat import FlatSender
from asyncrl.weights.staging import StagedWeights

_KEEP = 2
"""Files of a rank: a worker may still load the one before."""


class Sender(FlatSender):
    def copy(self, version: int, staged: StagedWeights) -> Any:
        return str(write(staged.flat, self._config.folder, version, self._config.rank))


class Receiver:
    """Of a worker that sees the trainer's disk."""

    def __init__(self, endpoints: list[dict[str, Any]], rank: int, world_size: int, timeout_s: float) -> None:
        """Nothing is held open."""

    def receive(self, copies: list[Any], sizes: list[int], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        for path, size in zip(copies, sizes, strict=True):
            yield open_file(Path(path), size, dtype)

    def close(self) -> None:
        """Nothing is held open."""


def write(flat: torch.Tensor, folder: Path, version: int, rank: int) -> Path:
    """The buffer as a file of its own, whole under its name or not there; older ones are deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{version:08d}-{rank}.bin"
    part = path.with_suffix(".part")
    with open(part, "wb", opener=owner_only) as file:
        file.write(flat.view(torch.uint8).numpy().data)
    part.replace(path)
    for old in sorted(folder.glob(f"*-{rank}.bin"))[:-_KEEP]:
        old.unlink(missing_ok=True)
    return path
