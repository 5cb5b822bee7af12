"""Errors that the command line shows as one sentence, without a traceback."""

from __future__ import annotations

import contextlib
import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from pathlib import Path


class UserError(Exception):
    """Bad input: says what is wrong, where, and what to change. Exit code 2."""


class RunFailed(RuntimeError):
    """The run cannot go on; the message says why. Shown as one sentence, with exit code 1."""


class DeadlineExceeded(RunFailed):
    """A wait outlived its deadline (I4); the message names who was waited for, and for what."""


class BudgetSpent(RunFailed):
    """Too much went wrong (recipe part `budgets`); the run saves what it can, then stops."""


class ActorError(RuntimeError):
    """An error in an actor that cannot be sent itself: the name of its type, and its text."""

    @property
    def kind(self) -> str:
        return str(self.args[0])

    def __str__(self) -> str:
        return str(self.args[1])


_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE, errno.ENXIO}


def is_of_a_disk(error: BaseException) -> bool:
    """Whether the disk is the cause: it is full, read-only or broken."""
    # Rust's I/O errors, such as those of safetensors, have their number only in their text.
    found = re.search(r"\(os error (\d+)\)", str(error))
    return (int(found[1]) if found else getattr(error, "errno", None)) in _OF_A_DISK


def remedy(error: OSError) -> str:
    """What to do about it."""
    return "free or repair the disk" if is_of_a_disk(error) else "put that right"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError raised in here knows its file: by itself, only one of opening it does."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def is_of_the_program(error: BaseException) -> bool:
    """Whether it says that something went wrong, and is no request to end. A panic in Rust comes as no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name that looks most like `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
