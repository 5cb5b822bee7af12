"""Errors that the command line shows as one sentence, without a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """Bad input: says what is wrong, where, and what to change. Exit code 2."""


class RunFailed(RuntimeError):
    """The run cannot go on; the message says why. Shown as one sentence, with exit code 1."""


class DeadlineExceeded(RunFailed):
    """A wait outlived its deadline (I4); the message names who was waited for, and for what."""


class BudgetSpent(RunFailed):
    """Too much went wrong (recipe part `budgets`); the run saves what it can, then stops."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError raised in here knows its file: by itself, only one of opening it does."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
