"""Tensors that are the content of a file, which other processes map or read."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from asyncrl.errors import RunFailed
from asyncrl.storage import private

SHARED_MEMORY = Path("/dev/shm")


def create_file(path: Path, num_elements: int, dtype: torch.dtype) -> torch.Tensor:
    """A new flat tensor that is the file's content. Raises RunFailed if there is no room."""
    num_bytes = num_elements * dtype.itemsize
    try:
        with open(path, "xb", opener=owner_only) as file:
            # Reserved now: a page that cannot be had later would end the process by SIGBUS.
            os.posix_fallocate(file.fileno(), 0, max(num_bytes, 1))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise RunFailed(
            f"weights.channel shared_memory: {num_bytes / 1e6:.0f} MB more in {path.parent}: {error.strerror}; free "
            "or enlarge it (in a container: --shm-size), or set weights.channel=gloo"
        ) from error
    return open_file(path, num_elements, dtype)


def open_file(path: Path, num_elements: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_file(str(path), shared=True, size=num_elements, dtype=dtype)


def open_own(path: Path, num_elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Raises RunFailed if anyone else could have put the file there, or write to it."""
    descriptor = private.open_file(path)
    try:
        return open_file(Path(f"/proc/self/fd/{descriptor}"), num_elements, dtype)
    finally:
        os.close(descriptor)


def owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
