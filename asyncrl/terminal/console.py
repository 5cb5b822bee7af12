"""rich's console, for texts of anyone and output that may lose its reader, as by `| head`.

Control characters of a text are shown as escapes. A lost reader ends the program if one leaves that to rich.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from asyncrl.terminal.escape import visible


class VisibleConsole(rich.console.Console):
    def render_str(self, text: str, **options: Any) -> Text:
        # rich would take some of them out.
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class Console(VisibleConsole):
    """Raises BrokenPipeError: `cli.py` says what becomes of it."""

    def on_broken_pipe(self) -> None:
        raise  # rich calls this while it handles the error


class RunConsole(VisibleConsole):
    """Of a run, which goes on when nobody reads it any more (a `tee` that died): its files have everything."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
