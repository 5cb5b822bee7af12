"""What safetensors files say that they hold: names, types and shapes, without reading a tensor.

The format (github.com/huggingface/safetensors): 8 bytes, the length of the header; the header, JSON; the tensors.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from asyncrl.errors import UserError

_MOST_BYTES = 100_000_000
"""Of a header, as the format's own library has it."""
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**60)]


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[_Size, ...]
    data_offsets: tuple[_Size, _Size]


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
                num_bytes = os.fstat(file.fileno()).st_size
                if length > min(_MOST_BYTES, num_bytes - 8):
                    raise ValueError("its header ends behind the file")
                entries = msgspec.json.decode(file.read(length), type=dict[str, Any])
            entries.pop("__metadata__", None)
            for name, entry in msgspec.convert(entries, dict[str, _Entry]).items():
                start, stop = (8 + length + offset for offset in entry.data_offsets)
                # No type takes less than a bit.
                if not start <= stop <= num_bytes or math.prod(entry.shape) > 8 * (stop - start):
                    raise ValueError(f"{name} has more than the file")
                found[name] = Header(path, entry.dtype, entry.shape, start, stop)
        except (struct.error, ValueError, RecursionError, IsADirectoryError) as error:
            raise UserError(f"{path} is not a whole safetensors file; copy it anew, or remove it") from error
    return found
