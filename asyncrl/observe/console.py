"""rich's console for output that may lose its reader, as by `| head`; by itself rich ends the program then."""

from __future__ import annotations

import os
import sys

import rich.console


class Console(rich.console.Console):
    """Raises BrokenPipeError: `cli.py` says what becomes of it."""

    def on_broken_pipe(self) -> None:
        raise  # rich calls this while it handles the error


class RunConsole(rich.console.Console):
    """Of a run, which goes on when nobody reads it any more (a `tee` that died): its files have everything."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
