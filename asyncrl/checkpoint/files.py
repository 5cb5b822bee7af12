"""The trainer's part of a checkpoint: safetensors, one file per rank, each tensor under its full name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from asyncrl.errors import UserError


def write(tensors: Mapping[str, torch.Tensor], folder: Path, rank: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"rank_{rank}.safetensors")


def read(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of all ranks that wrote it, however many read it. Raises UserError if there are none."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("rank_*.safetensors")):
        tensors |= load_file(path)
    if not tensors:
        raise UserError(f"{folder} holds no trainer state; remove {folder.parent} to resume from the checkpoint before")
    return tensors
