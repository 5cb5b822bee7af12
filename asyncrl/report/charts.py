"""Charts over steps as Plotly figures. Each is JSON in an attribute of its place; the page's script draws them all.

Colours are names of the page's CSS variables until then, so that charts follow light and dark. Names are text: Plotly
would take tags in them for markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

from asyncrl.report.shapes import is_figure

_HEIGHT_PX = 280
_LONGEST_NAME = 32
_WHOLE_STEPS = 10
"""Of fewer steps each has its own tick; Plotly would put others between them."""
_PLACES = 12
"""After the point."""
_FONT = {"family": "inherit", "size": 12}
_AXIS = {"gridcolor": "--rule", "linecolor": "--grey", "zeroline": False, "automargin": True}
_LOOKS = {
    "font": {**_FONT, "color": "--soft"},
    "paper_bgcolor": "--card",
    "plot_bgcolor": "--card",
    "margin": {"l": 56, "r": 12, "t": 8, "b": 40},
    "xaxis": {**_AXIS, "showline": True, "exponentformat": "none", "title": {"standoff": 6}},
    "yaxis": {**_AXIS, "ticklabelstandoff": 3, "title": {"standoff": 8}, "exponentformat": "e", "minexponent": 5},
    "showlegend": True,
    "legend": {
        "orientation": "h",
        "x": 0,
        "y": 1.02,
        "yanchor": "bottom",
        "traceorder": "normal",
        "font": {"size": 11},
    },
    "hoverlabel": {"bgcolor": "--card", "bordercolor": "--grey", "font": {**_FONT, "color": "--ink"}, "namelength": -1},
}
_SCRIPT = """
async function draw(root, paper) {
  for (const place of root.querySelectorAll(".plot")) {
    const variables = getComputedStyle(place);
    const coloured = (key, value) => key.endsWith("color") ? variables.getPropertyValue(value) : value;
    const {data, layout} = JSON.parse(place.dataset.figure, coloured);
    if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;  // a finger scrolls the page
    layout.width = !paper ? place.clientWidth : place.closest(".wide") ? 960 : 310;  // on paper two beside each other
    Plotly.react(place, data, layout, {displayModeBar: false, responsive: true});
    if (!paper) await new Promise((then) => setTimeout(then));  // the page is shown meanwhile
  }
}
draw(document);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(document));
for (const when of ["beforeprint", "afterprint"]) addEventListener(when, () => {
  document.documentElement.classList.toggle("paper", when === "beforeprint");
  draw(document, when === "beforeprint");
});
"""


@dataclass(frozen=True)
class Series:
    """One named line or layer; `values` has one entry per step, None where the step has no figure."""

    name: str
    values: Sequence[float | None]
    colour: str
    """Name of a CSS variable, without its dashes."""
    dashed: bool = False
    band: Sequence[tuple[float, float] | None] | None = None
    """Its lower and its upper edge, such as those of a confidence interval."""
    joined: bool = False
    """The line goes on over steps that have no figure."""


@dataclass(frozen=True)
class Chart:
    """What one chart shows. `unit` labels the y axis; `percent` shows ratios as percentages."""

    title: str
    unit: str
    steps: Sequence[int]
    series: Sequence[Series]
    percent: bool = False
    stacked: bool = False
    from_zero: bool = True
    x: str = "step"
    """What `steps` are numbers of."""


def script(nonce: str = "") -> str:
    """Plotly, and what draws the page's plots with it; belongs at the end of the page. `nonce` is of its policy."""
    from plotly.offline import get_plotlyjs

    return f'<script nonce="{nonce}">{get_plotlyjs()}{_SCRIPT}</script>'


def grid(charts: Iterable[Chart], first: bool = True) -> str:
    """Side by side, as far as they fit. first: the page has said nothing of charts yet."""
    said = (
        "<noscript><p>The charts need JavaScript; the tables have the figures.</p></noscript>"
        '<p class="soft hint">Click a name to hide its curve. '
        "With a mouse, drag to zoom, and double-click to go back.</p>"
    )
    return f'{said if first else ""}<div class="charts">{"".join(map(_figure, charts))}</div>'


def plot(label: str, traces: Sequence[dict[str, Any]], layout: dict[str, Any], height_px: int = _HEIGHT_PX) -> str:
    """Where the script draws a figure. `label` is for those who hear the page; colours are names of CSS variables."""
    figure = {"data": traces, "layout": {"template": {"layout": _LOOKS}, "uirevision": "kept", **layout}}
    found = json.dumps(figure, allow_nan=False, separators=(",", ":"))
    return (
        f'<div class="plot" role="img" aria-label="{escape(label)}" style="height:{height_px}px" '
        f'data-figure="{escape(found)}"></div>'
    )


def plain(name: str, longest: int = _LONGEST_NAME) -> str:
    """A name as Plotly shows it: without markup, and without its middle if it is longer."""
    half = longest // 2
    return escape(name if len(name) <= longest else f"{name[:half]}…{name[-half:]}", quote=False)


def _figure(chart: Chart) -> str:
    traces = [trace for series in chart.series for trace in _traces(chart, series)]
    has_figures = any(value is not None for trace in traces for value in trace["y"])
    drawn = plot(chart.title, traces, _layout(chart)) if has_figures else '<p class="none">no figures</p>'
    return f"<figure><figcaption>{escape(chart.title)}</figcaption>{drawn}</figure>"


def _layout(chart: Chart) -> dict[str, Any]:
    x = {"title": {"text": chart.x}, "unifiedhovertitle": {"text": f"{chart.x} %{{x}}"}}
    y = {"title": {"text": chart.unit}, "rangemode": "tozero" if chart.from_zero else "normal"}
    return {
        "xaxis": x | ({"dtick": 1} if chart.steps[-1] - chart.steps[0] < _WHOLE_STEPS else {}),
        "yaxis": y
        | ({"tickformat": "~%", "hoverformat": ".2~%"} if chart.percent else {"hoverformat": ".4~r"})
        | ({"range": [0, 1]} if chart.stacked else {}),
        "showlegend": len(chart.series) > 1 or chart.series[0].band is not None,
        "hovermode": "x unified",
        "barmode": "stack",
        "bargap": 0.08,
    }


def _traces(chart: Chart, series: Series) -> list[dict[str, Any]]:
    """The layer, or the line over its band."""
    values = [_shown(value) for value in series.values]
    trace = {"name": plain(series.name), "x": [*chart.steps], "y": values, "marker": {"color": f"--{series.colour}"}}
    if chart.stacked:
        return [{**trace, "type": "bar"}]
    line = {"mode": "lines+markers" if _has_lone(values) else "lines", "line": {"width": 2}}
    if series.dashed:
        line["line"] = {"width": 1.5, "dash": "dash"}
    if series.joined:
        line |= {"mode": "lines+markers", "connectgaps": True}
    if series.band is None:
        return [{**trace, **line}]
    return [_band(chart.steps, values, series), {**trace, **line, "legendgroup": series.name}]


def _band(steps: Sequence[int], values: Sequence[float | None], series: Series) -> dict[str, Any]:
    """A shape for each stretch of steps that have figures, there along its upper edge and back along its lower one."""
    x, y = [], []
    entries = list(zip(steps, values, series.band or (), strict=True))
    if series.joined:
        entries = [entry for entry in entries if entry[1] is not None]
    for has_figure, stretch in groupby(entries, lambda entry: entry[1] is not None):
        if has_figure:
            there = [(step, *(band or (value, value))) for step, value, band in stretch]
            x += [step for step, _, _ in [*there, *there[::-1]]] + [None]
            y += [_shown(high) for _, _, high in there]
            y += [_shown(low) for _, low, _ in there[::-1]] + [None]
    looks = {
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "fillcolor": f"--{series.colour}",
        "opacity": 0.15,
    }
    return {"x": x, "y": y, **looks, "hoverinfo": "skip", "showlegend": False, "legendgroup": series.name}


def _shown(value: float | None) -> float | None:
    """To six digits, for the page's size; as good as 0 is 0, for Plotly fails on axes that are shorter."""
    return float(f"{round(value, _PLACES):.6g}") if is_figure(value) else None


def _has_lone(values: Sequence[float | None]) -> bool:
    """Whether a figure has no neighbour that a line could go to."""
    around = zip([None, *values], values, [*values[1:], None], strict=False)
    return any(value is not None and before is None and after is None for before, value, after in around)
