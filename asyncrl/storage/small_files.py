"""Small files that a user names, or a model has: read as a whole, through links too, but nobody waits for a pipe or
reads a device, and what is in them is one sentence if it is not what it should be."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asyncrl.errors import UserError
from asyncrl.storage.run_dir import MOST_BYTES

MOST_TOKENIZER_BYTES = 512 * 2**20


def read(path: Path, most: int = MOST_BYTES) -> bytes:
    """Raises OSError for what is no regular file, or has more than `most` bytes, too."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no file, but a pipe or a device", str(path))
        found = file.read(most + 1)
    if len(found) > most:
        raise OSError(errno.EFBIG, f"it has more than {most // 2**20} MiB", str(path))
    return found


def json_object(path: Path) -> dict[str, Any]:
    """{} if there is no such file. Raises UserError for what holds no object."""
    with of_model(path):
        try:
            found = json.loads(read(path))
        except FileNotFoundError:
            return {}
        if not isinstance(found, dict):
            raise TypeError("it holds no JSON object")
        return found


@contextlib.contextmanager
def of_model(path: Path) -> Iterator[None]:
    """What is raised because a file of a model is not as it should be becomes a UserError that names it."""
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        said = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(f"model: {path} cannot be used: {said:.200}; copy the model anew") from error
