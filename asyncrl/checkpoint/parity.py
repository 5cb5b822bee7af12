"""State as bytes, bytes as shards, and one shard more from which any lost one comes back. Pure functions.

tensors --flatten--> layout + buffer --split--> n shards --parity--> 1 shard
n + 1 shards, one of them missing --rebuild--> n shards --join--> buffer --unflatten--> tensors, bit for bit
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asyncrl.errors import RunFailed

Layout = dict[str, Any]

_ALIGN_BYTES = 16
"""A tensor starts at a multiple of this, so that its bytes can be viewed as any dtype."""


class SnapshotLost(RunFailed):
    """More shards of a snapshot are missing than parity makes up for."""


def flatten(tensors: Mapping[str, Tensor]) -> tuple[Layout, np.ndarray]:
    """CPU tensors of any dtype as one uint8 buffer [num_bytes], copied once, and its description for JSON."""
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        offset = -(-end // _ALIGN_BYTES) * _ALIGN_BYTES
        entries[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset]
        end = offset + tensor.numel() * tensor.element_size()
    layout: Layout = {"num_bytes": end, "tensors": entries}
    # Zeros, not empty: the gaps that align the tensors are part of what is sent.
    buffer = np.zeros(end, dtype=np.uint8)
    for name, target in unflatten(layout, buffer).items():
        target.copy_(tensors[name].detach())
    return layout, buffer


def unflatten(layout: Layout, buffer: np.ndarray) -> dict[str, Tensor]:
    """The tensors as views of `buffer`, which is writable and at least `num_bytes` long."""
    # An empty array comes over with a stride that `view` refuses.
    flat = torch.from_numpy(buffer) if len(buffer) else torch.empty(0, dtype=torch.uint8)
    tensors: dict[str, Tensor] = {}
    for name, (dtype_name, shape, offset) in layout["tensors"].items():
        dtype = getattr(torch, dtype_name)
        num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        tensors[name] = flat[offset : offset + num_bytes].view(dtype).view(shape)
    return tensors


def split(buffer: np.ndarray, num_shards: int) -> list[np.ndarray]:
    """uint8 [N] as `num_shards` shards of ceil(N / num_shards) bytes; views, but for those at the end padded with 0."""
    if num_shards < 1:
        raise ValueError(f"cannot split a buffer into {num_shards} shards; ask for at least 1")
    size = -(-len(buffer) // num_shards)
    shards = [buffer[i * size : (i + 1) * size] for i in range(num_shards)]
    return [np.pad(shard, (0, size - len(shard))) if len(shard) < size else shard for shard in shards]


def parity(shards: Sequence[np.ndarray]) -> np.ndarray:
    """XOR of shards of one length; with all shards of a snapshot but one, that one."""
    total = shards[0].copy()
    for shard in shards[1:]:
        np.bitwise_xor(total, shard, out=total)
    return total


def rebuild(shards: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """The data shards, from the data shards and behind them the parity shard; None stands for a missing one.

    Raises SnapshotLost if more than one is missing.
    """
    missing = [index for index, shard in enumerate(shards) if shard is None]
    present = [shard for shard in shards if shard is not None]
    if len(missing) > 1:
        names = " and ".join([", ".join(map(str, missing[:-1])), str(missing[-1])])
        raise SnapshotLost(
            f"shards {names} of {len(shards)} are missing (the last is parity), and only one can be rebuilt; "
            "go on from the newest checkpoint on disk"
        )
    if not missing or missing[0] == len(present):
        return present[: len(shards) - 1]
    present.insert(missing[0], parity(present))
    return present[:-1]


def join(shards: Sequence[np.ndarray]) -> np.ndarray:
    """Inverse of `split`, its padding still at the end; a writable copy."""
    return np.concatenate(shards)
