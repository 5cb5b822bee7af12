"""What safetensors files say that they hold: names, types and shapes, without reading a tensor.

The format (github.com/huggingface/safetensors): 8 bytes, the length of the header; the header, JSON; the tensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from asyncrl.errors import UserError


@dataclass(frozen=True)
class Header:
    """Of one tensor."""

    file: Path
    dtype: str
    """As the format has it: F32, BF16, I64, ..."""
    shape: tuple[int, ...]
    start: int
    stop: int
    """Its bytes are [start, stop) of the file."""


def read_headers(files: Iterable[Path]) -> dict[str, Header]:
    """By tensor name. Raises UserError if one of the files is none."""
    found: dict[str, Header] = {}
    for path in files:
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                entries = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            for name, entry in entries.items():
                start, stop = (8 + length + offset for offset in entry["data_offsets"])
                found[name] = Header(path, entry["dtype"], tuple(entry["shape"]), start, stop)
        except (struct.error, ValueError, KeyError, MemoryError, OverflowError) as error:
            raise UserError(f"{path} is not a whole safetensors file; copy it anew, or remove it") from error
    return found
