"""The report's looks: its style sheet and the frame around its parts. Colours for light and dark, no outside asset."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path

from asyncrl.errors import UserError
from asyncrl.storage.run_dir import replace, require_replaceable

_MOST_TILES = (7, 4)
"""Beside each other, in a wide window and in a narrower one."""
_FIGURE = re.compile(r"[-+]?[\d.,]*(e[-+]?\d+)?( ?%)?|(\d+ (h|min|s) ?)+")
_HEAD = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="asyncrl">'
_STYLE = """
:root { color-scheme: light dark; } .paper { color-scheme: light; }
:root { --paper:#fbfbfa; --card:#ffffff; --ink:#1d2127; --soft:#5c6470; --rule:#e3e5e8;
  --blue:#1f6fd1; --green:#1a8a5a; --amber:#c77700; --violet:#7b4fc9; --teal:#0f8fa3; --red:#c93a3a; --grey:#7f8794;
  --v0:#dbe9fb; --v1:#ffe8c2; --v2:#d6f1e1; --v3:#ecdff9; --v4:#fbdcdc; --v5:#d4eef2;
  --g0:#f1f2f4; --g1:#fdf0c4; --g2:#ffd98f; --g3:#ffb877; --g4:#ff9580; }
@media screen and (prefers-color-scheme: dark) { :root:not(.paper) {
  --paper:#14171b; --card:#1c2026; --ink:#e6e8eb; --soft:#a0a8b3;
  --rule:#333942; --blue:#6aa9ff; --green:#4fc48d; --amber:#f0a83a; --violet:#b795f5; --teal:#4cc3d6; --red:#f07878;
  --grey:#77808c; --v0:#1f3a5c; --v1:#574017; --v2:#1d4a35; --v3:#41305f; --v4:#5b2b2e; --v5:#1b4750;
  --g0:#262b32; --g1:#40391f; --g2:#5c4517; --g3:#7a4413; --g4:#96382a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 24px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 34px 0 12px; }
h1 + .card { margin-top: 16px; }
h3 { display: inline; font-size: 15px; margin: 0 8px 0 0; }
p { margin: 6px 0; }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; border-radius: 4px; }
.soft, .none { color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0 12px; --columns: var(--wide); }
@media (max-width: 1100px) { .tiles { --columns: var(--middle); } }
@media (max-width: 600px) { .tiles { --columns: 2; } }
.tile, figure, .card, .line { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.tile { padding: 10px 12px; flex: 1 1 calc(100% / var(--columns) - 12px); }
.tile b { display: block; font-size: 19px; line-height: 1.3; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.line { padding: 12px 14px; border-left: 4px solid var(--blue); margin: 12px 0; }
.line.warn { border-left-color: var(--amber); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)); gap: 14px; }
figure { margin: 0; padding: 12px 12px 6px; min-width: 0; }
figcaption { font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; }
th, td:first-child { white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
tr:last-child td { border-bottom: 0; }
.card { padding: 12px 16px; margin: 0 0 12px; }
dl { margin: 8px 0 0; }
dt { font-size: 13px; color: var(--soft); }
dd { margin: 0 0 6px; }
div.text { white-space: pre-wrap; overflow-wrap: anywhere; font: 13.5px/1.65 ui-monospace, Menlo, "DejaVu Sans Mono",
  monospace; max-height: 320px; overflow-y: auto; }
.turn, .read { border-left: 3px solid var(--blue); padding-left: 10px; margin: 6px 0; }
.read { border-color: var(--rule); color: var(--soft); }
.text .who { display: block; font: 12px/1.5 system-ui, sans-serif; color: var(--soft); user-select: none; }
.text span, .key { border-radius: 3px; padding: 1px 0; }
.key { padding: 1px 6px; margin-right: 6px; font-size: 13px; }
.key { display: inline-block; margin-bottom: 4px; }
.switch { border: 1px solid var(--rule); border-radius: 10px; background: var(--card); padding: 6px 14px 8px;
  margin: 0 0 12px; display: flex; flex-wrap: wrap; gap: 4px 20px; }
.switch legend { font-size: 13px; color: var(--soft); padding: 0 4px; }
.switch input { accent-color: var(--blue); }
ul.card { padding-left: 34px; }
.c0 { background: var(--v0); } .c1 { background: var(--v1); } .c2 { background: var(--v2); }
.c3 { background: var(--v3); } .c4 { background: var(--v4); } .c5 { background: var(--v5); }
.key.g0, .samples:has(#by-gap:checked) .text .g0 { background: var(--g0); }
.key.g1, .samples:has(#by-gap:checked) .text .g1 { background: var(--g1); }
.key.g2, .samples:has(#by-gap:checked) .text .g2 { background: var(--g2); }
.key.g3, .samples:has(#by-gap:checked) .text .g3 { background: var(--g3); }
.key.g4, .samples:has(#by-gap:checked) .text .g4 { background: var(--g4); text-decoration: underline; }
.key.gx, .samples:has(#by-gap:checked) .text .gx { background: none; text-decoration: underline dotted var(--grey); }
.gap-only, .samples:has(#by-gap:checked) .version-only { display: none; }
.samples:has(#by-gap:checked) .gap-only { display: revert; }
.wide { overflow-x: auto; }
.wide .plot { min-width: 960px; }
@media print { :root { color-scheme: light; } body { padding: 0; font-size: 12px; }
  figure, .card, .line, .tiles { break-inside: avoid; } h2 { break-after: avoid; }
  .charts { grid-template-columns: 1fr 1fr; }
  .wide, div.text { overflow: visible; max-height: none; } .wide .plot { zoom: .7; } .switch, .hint { display: none; }
  .text span, .key { print-color-adjust: exact; } }
summary { cursor: pointer; font-weight: 600; }
.charts + .card { margin-top: 14px; }
pre { overflow-x: auto; font-size: 13px; }
"""


def palettes() -> tuple[dict[str, str], dict[str, str]]:
    """Names of colours and what they are, in light and in dark."""
    light, dark = (dict(re.findall(r"--(\w+):(#[0-9a-f]{6})", block)) for block in _STYLE.split("@media screen")[:2])
    return light, dark


def page(title: str, parts: list[str]) -> str:
    """A whole HTML document; `parts` are HTML, `title` is text."""
    return (
        f"{_HEAD}<title>{escape(title)}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "<main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )


def of_ours(path: Path) -> Path:
    """The path, if there is nothing or a page of asyncrl's. Raises UserError: what a run is called, which may be
    another's choice, makes no file of the user's go away."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            ours = file.read(len(_HEAD)) == _HEAD.encode()
    except OSError:
        ours = not os.path.lexists(path)
    if not ours:
        raise UserError(f"{path} exists and is no page of asyncrl's; say --out FILE, or move it away")
    return path


def write(path: Path, title: str, parts: list[str]) -> Path:
    """`page` as a file, which takes the place of the one that is there. Raises UserError if it cannot."""
    try:
        require_replaceable(path)
        replace(path, page(title, parts))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; say --out FILE with another one") from error
    return path


def tiles(figures: list[tuple[str, str, str]]) -> str:
    """Large figures: (figure, name, remark); at least one. In rows of about as many each."""
    made = (
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(figure)}</b><span>{escape(remark)}</span></div>'
        for figure, name, remark in figures
    )
    wide, middle = map(partial(_columns, len(figures)), _MOST_TILES)
    return f'<div class="tiles" style="--wide:{wide};--middle:{middle}">{"".join(made)}</div>'


def _columns(count: int, most: int) -> int:
    """So many that the last row, which is stretched, is the fullest, and no tile is alone in it if that can be."""
    return min(range(most // 2 + 1, most + 1), key=lambda columns: (count % columns == 1, -count % columns))


def line(text: str, warn: bool = False) -> str:
    """A sentence that stands out."""
    return f'<div class="line{" warn" if warn else ""}">{escape(text)}</div>'


def section(title: str, body: str) -> str:
    """Empty if it has no body."""
    return f"<h2>{escape(title)}</h2>\n{body}" if body else ""


def place(name: str, html: str) -> str:
    """A part of the page that can be found by its name."""
    return f'<section id="{name}">{html}</section>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Cells are text; figures stand at the right. `caption` is for those who hear the page."""
    figures = [all(_FIGURE.fullmatch(row[column]) for row in rows) for column in range(len(heads))]

    def line(tag: str, cells: Sequence[str]) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        kinds = [' class="n"' if figure else "" for figure in figures]
        made = (f"<{tag}{scope}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line("td", row) for row in rows)
    name = escape(caption)
    return (
        f'<div class="card wide" tabindex="0" role="region" aria-label="{name}"><table><caption>{name}</caption>'
        f"<thead>{line('th', heads)}</thead><tbody>{body}</tbody></table></div>"
    )


def folded(summary: str, body: str) -> str:
    """HTML that is shown when asked for."""
    return f'<details class="card"><summary>{escape(summary)}</summary>{body}</details>'
