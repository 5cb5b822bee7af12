"""The trainer's part of a checkpoint: safetensors, one file per rank, each tensor under its full name.

Of a tensor that is sharded by rows a rank writes its own, as `<name>@<first row>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from asyncrl.errors import UserError
from asyncrl.headers import read_headers


def write(tensors: Mapping[str, torch.Tensor], folder: Path, rank: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"rank_{rank}.safetensors")


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of all tensors of all ranks that wrote it, whole ones, by name; none is read."""
    whole: dict[str, tuple[int, ...]] = {}
    for key, header in read_headers(sorted(folder.glob("rank_*.safetensors"))).items():
        name, _, first = key.partition("@")
        if first and not (header.shape and (name not in whole or whole[name][1:] == header.shape[1:])):
            raise UserError(f"{header.file}: the rows of {name} do not fit together; copy the checkpoint anew")
        rows = header.shape[0] + (whole[name][0] if name in whole else 0) if first else 0
        whole[name] = (rows, *header.shape[1:]) if first else header.shape
    return whole


def read(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """All tensors of all ranks that wrote it, or those whose names begin so; whole, however many ranks wrote them.

    Raises UserError if there are none, or they are no checkpoint.
    """
    try:
        return _read(folder, prefix)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{folder} is no checkpoint of asyncrl ({error}); remove {folder.parent} to resume from the checkpoint "
            "before"
        ) from error


def _read(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    whole: dict[str, torch.Tensor] = {}
    rows: dict[str, dict[int, torch.Tensor]] = {}
    for path in sorted(folder.glob("rank_*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            for key in names:
                if not key.startswith(prefix):
                    continue
                name, _, first = key.partition("@")
                if first:
                    rows.setdefault(name, {})[int(first)] = file.get_tensor(key)
                else:
                    whole[name] = file.get_tensor(key)
    if not whole and not rows:
        raise UserError(f"{folder} holds no trainer state; remove {folder.parent} to resume from the checkpoint before")
    for name, parts in rows.items():
        whole[name] = torch.cat([parts[first] for first in sorted(parts)])
    return whole
