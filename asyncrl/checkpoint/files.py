"""The trainer's part of a checkpoint: safetensors, one file per rank, each tensor under its full name.

Of a tensor that is sharded by rows a rank writes its own, as `<name>@<first row>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from asyncrl.errors import UserError
from asyncrl.headers import read_headers

_FLOATS = ("F64", "F32", "BF16", "F16")
_ROW = re.compile(r"[0-9]{1,18}")


def write(tensors: Mapping[str, torch.Tensor], folder: Path, rank: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"rank_{rank}.safetensors")


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of all tensors of all ranks that wrote it, whole ones, by name; none is read. Raises UserError if they do not fit
    together, or are none that asyncrl writes."""
    whole: dict[str, tuple[int, ...]] = {}
    parts: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
    for key, header in read_headers(sorted(folder.glob("rank_*.safetensors"))).items():
        name, is_part, first = key.partition("@")
        if name.startswith("model.") and header.dtype not in _FLOATS:
            raise UserError(f"{folder}: {name} is of type {header.dtype}, as no weights are; copy the checkpoint anew")
        if is_part:
            parts.setdefault(name, []).append((int(first) if _ROW.fullmatch(first) else -1, header.shape))
        else:
            whole[name] = header.shape
    for name, found in parts.items():
        rows = 0
        for first_row, shape in sorted(found):
            if not shape or first_row != rows or shape[1:] != found[0][1][1:] or name in whole:
                raise UserError(f"{folder}: the rows of {name} do not fit together; copy the checkpoint anew")
            rows += shape[0]
        whole[name] = (rows, *found[0][1][1:])
    return whole


class Saved(Mapping[str, "torch.Tensor | Rows"]):
    """The tensors of all ranks that wrote a checkpoint, by name: whole, or `Rows` if several ranks wrote parts. Nothing
    is read before it is asked for, so that a rank reads what it holds, not what all hold."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder, self._found = folder, {}
        with _readable(folder):
            for path in sorted(folder.glob("rank_*.safetensors")):
                file = safe_open(path, framework="pt")
                for key in file.keys():  # noqa: SIM118
                    name, _, first = key.partition("@")
                    if key.startswith(prefix):
                        parts = self._found.setdefault(name, [])
                        # What every rank holds, such as numbers of the optimizer's, each writes.
                        once = first or name.startswith("model.")
                        if once and any(other == key for _, other, _ in parts):
                            raise ValueError(f"two files have {key}")
                        parts.append((int(first or 0), key, file))
        self._shapes = shapes(folder)

    def __getitem__(self, name: str) -> torch.Tensor | Rows:
        parts = sorted(self._found[name], key=lambda part: part[0])
        with _readable(self._folder):
            _, key, file = parts[0]
            return Rows(self._folder, self._shapes[name], parts) if "@" in key else file.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True)
class Rows:
    """A tensor of which several files have rows. `rows[first:stop]` are some, `rows[...]` all, as of a tensor."""

    folder: Path
    shape: tuple[int, ...]
    parts: list[tuple[int, str, Any]]
    """First row, name in the file, and the file, in order."""

    def __getitem__(self, wanted: slice | EllipsisType) -> torch.Tensor:
        start, stop, _ = slice(None).indices(self.shape[0]) if wanted is ... else wanted.indices(self.shape[0])
        found = []
        with _readable(self.folder):
            for first, key, file in self.parts:
                part = file.get_slice(key)
                begin, end = max(start - first, 0), min(stop - first, part.get_shape()[0])
                if begin < end:
                    found.append(part[begin:end])
            return found[0] if len(found) == 1 else torch.cat(found or [part[:0]])


def read(folder: Path, prefix: str = "") -> Saved:
    """The tensors of a checkpoint, or those whose names begin so. Raises UserError if there are none, or they are no
    checkpoint, here or where one is read."""
    saved = Saved(folder, prefix)
    if not saved:
        raise UserError(f"{folder} holds no trainer state; remove {folder.parent} to resume from the checkpoint before")
    return saved


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, ValueError, LookupError, RuntimeError, OSError) as error:
        raise UserError(
            f"{folder} is no checkpoint of asyncrl ({error}); remove {folder.parent} to resume from the checkpoint "
            "before"
        ) from error
