"""The panel of a run in the output of a notebook's cell: one output, whose content is replaced."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import RenderableType
from rich.terminal_theme import TerminalTheme

from asyncrl.terminal.console import VisibleConsole
from asyncrl.terminal.progress import Heartbeat

_WIDTH = 96
_COLOURS = [
    (128, 136, 144),
    (208, 71, 63),
    (46, 139, 87),
    (184, 134, 11),
    (58, 123, 213),
    (160, 95, 208),
    (29, 147, 168),
]
_THEME = TerminalTheme((255, 255, 255), (0, 0, 0), [*_COLOURS, (128, 136, 144)], [*_COLOURS, (128, 136, 144)])
"""Black to white, and the bright ones; told from a notebook's white and from its black."""
_FORMAT = (
    '<pre style="white-space:pre;overflow-x:auto;line-height:1.25;font-family:Menlo,Consolas,'
    "'DejaVu Sans Mono',monospace\">{code}</pre>"
)


class NotebookPanel:
    """Shows what `panel` gives, anew every second from `start` to `stop`. With the methods of `rich.live.Live` that a
    run uses; that one wants ipywidgets for it."""

    def __init__(self, panel: Callable[[], RenderableType]) -> None:
        self._panel = panel

    def start(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._shown = display(HTML(self._drawn()), display_id=True)
        self._heart = Heartbeat(self.refresh)

    def refresh(self) -> None:
        self._shown.update(self._html(self._drawn()))

    def stop(self) -> None:
        self._heart.stop()
        self.refresh()

    def _drawn(self) -> str:
        console = VisibleConsole(
            file=io.StringIO(), record=True, width=_WIDTH, force_terminal=True, force_jupyter=False
        )
        console.print(self._panel())
        return console.export_html(theme=_THEME, code_format=_FORMAT, inline_styles=True)
