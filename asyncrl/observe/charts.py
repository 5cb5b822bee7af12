"""Charts over steps as inline SVG: no script, no asset; colours come from the page's CSS variables.

Every chart has one unit on its axis, a legend in words, and over each step a transparent strip whose <title> is
the browser's tooltip with all figures of that step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 470, 232
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 12, 40
_PLOT_W, _PLOT_H = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
_MOST_TICKS = 5


@dataclass(frozen=True)
class Series:
    """One named line or layer; `values` has one entry per step, None where the step has no figure."""

    name: str
    values: Sequence[float | None]
    colour: str
    """Name of a CSS variable, without its dashes."""
    dashed: bool = False
    spread: Sequence[float | None] | None = None
    """Half the height of a band around the line, such as a standard deviation."""


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


@dataclass(frozen=True)
class _Frame:
    """Where data lie in the drawing: x by step, y by value. Every step has a column of the same width."""

    first: int
    last: int
    num_columns: int
    low: float
    high: float

    @property
    def column(self) -> float:
        return _PLOT_W / self.num_columns

    def x(self, step: float) -> float:
        """Middle of the step's column."""
        along = (step - self.first) / (self.last - self.first) if self.last > self.first else 0.0
        return _LEFT + self.column / 2 + along * (_PLOT_W - self.column)

    def y(self, value: float) -> float:
        return _TOP + _PLOT_H * (1 - (value - self.low) / (self.high - self.low))


def svg(chart: Chart) -> str:
    """A <figure> with the chart's title, legend and drawing; says so if there is nothing to draw."""
    title, legend = escape(chart.title), _legend(chart.series)
    if not any(_is_finite(v) for s in chart.series for v in s.values):
        return f'<figure><figcaption>{title}</figcaption><p class="none">no figures yet</p></figure>'
    ticks = _ticks(*_range(chart))
    frame = _Frame(chart.steps[0], chart.steps[-1], len(chart.steps), ticks[0], ticks[-1])
    drawn = _layers(chart, frame) if chart.stacked else "".join(_line(chart.steps, s, frame) for s in chart.series)
    return (
        f"<figure><figcaption>{title}</figcaption>{legend}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        f"{_axes(chart, frame, ticks)}{drawn}{_strips(chart, frame)}</svg></figure>"
    )


def _legend(series: Sequence[Series]) -> str:
    items = (
        f'<span><i class="{"dash" if s.dashed else ""}" style="--c:var(--{s.colour})"></i>{escape(s.name)}</span>'
        for s in series
    )
    return f'<div class="legend">{"".join(items)}</div>'


_LEAST, _MOST = 1e-300, 1e300
"""Of numbers whose ranges can be divided: those that are smaller are as good as 0, larger ones as infinite."""


def _is_finite(value: float | None) -> bool:
    """Not so large either that a range of it is infinite."""
    return value is not None and abs(value) < _MOST


def _range(chart: Chart) -> tuple[float, float]:
    if chart.stacked:
        return 0.0, 1.0
    ends = [0.0] if chart.from_zero else []
    for series in chart.series:
        spreads = series.spread or [0.0] * len(series.values)
        for value, spread in zip(series.values, spreads, strict=True):
            if _is_finite(value):
                spread = spread if _is_finite(spread) else 0.0
                ends += [value - spread, value + spread]
    # Air above the highest line; ratios end at a round figure as they are.
    air = 0.0 if chart.percent else 0.04 * (max(ends) - min(ends))
    return min(ends), max(ends) + air


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly spaced, from at or below `low` to at or above `high`."""
    if high - low < _LEAST:
        low, high = low - abs(low) / 2, high + (abs(high) / 2 if abs(high) > _LEAST else 1.0)
    rough = (high - low) / (_MOST_TICKS - 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def label(value: float, percent: bool = False) -> str:
    """A figure in at most about five characters."""
    if percent:
        return f"{100 * value:.3g} %"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.3g} {suffix}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _axes(chart: Chart, frame: _Frame, ticks: Sequence[float]) -> str:
    parts = []
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    for tick in ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = escape(label(0.0 if abs(tick) < 1e-12 else tick, chart.percent))
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for step in _step_ticks(frame.first, frame.last):
        parts.append(f'<text x="{frame.x(step):.1f}" y="{bottom + 15}" text-anchor="middle">{step}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle_x, middle_y = _LEFT + _PLOT_W / 2, _TOP + _PLOT_H / 2
    parts.append(f'<text class="unit" x="{middle_x}" y="{HEIGHT - 7}" text-anchor="middle">step</text>')
    turned = f'transform="rotate(-90 12 {middle_y})"'
    parts.append(f'<text class="unit" x="12" y="{middle_y}" text-anchor="middle" {turned}>{escape(chart.unit)}</text>')
    return "".join(parts)


def _step_ticks(first: int, last: int) -> list[int]:
    """Whole steps, at most about ten of them."""
    rough = max(1.0, (last - first) / 9)
    magnitude = 10 ** math.floor(math.log10(rough))
    stride = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough)
    return list(range(-(-first // stride) * stride, last + 1, stride))


def _line(steps: Sequence[int], series: Series, frame: _Frame) -> str:
    """The line, broken where figures are missing, over its band; a lone point becomes a dot."""
    style = f'style="--c:var(--{series.colour})"'
    spreads = series.spread or [None] * len(series.values)
    parts = []
    for run in _runs(list(zip(steps, series.values, spreads, strict=True))):
        points = [(frame.x(step), frame.y(value)) for step, value, _ in run]
        if series.spread and len(run) > 1:
            upper = [(frame.x(s), frame.y(v + (d or 0.0))) for s, v, d in run]
            lower = [(frame.x(s), frame.y(v - (d or 0.0))) for s, v, d in reversed(run)]
            parts.append(f'<polygon class="band" {style} points="{_points(upper + lower)}"/>')
        if len(points) == 1:
            parts.append(f'<circle class="dot" {style} cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>')
        else:
            parts.append(
                f'<polyline class="line-path{" dash" if series.dashed else ""}" {style} points="{_points(points)}"/>'
            )
    return "".join(parts)


def _runs(entries: list[tuple[int, float | None, float | None]]) -> list[list[tuple[int, float, float | None]]]:
    runs: list[list[tuple[int, float, float | None]]] = [[]]
    for step, value, spread in entries:
        if value is not None and math.isfinite(value):
            runs[-1].append((step, value, spread))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _layers(chart: Chart, frame: _Frame) -> str:
    """One column per step, the series on top of each other from the bottom; a little air between columns."""
    width = frame.column * 0.92
    parts = []
    for index, step in enumerate(chart.steps):
        left = frame.x(step) - width / 2
        base = 0.0
        for series in chart.series:
            value = series.values[index]
            if value is None or not math.isfinite(value) or value <= 0:
                continue
            top, bottom = frame.y(base + value), frame.y(base)
            parts.append(
                f'<rect class="layer" style="--c:var(--{series.colour})" x="{left:.2f}" '
                f'y="{top:.2f}" width="{width:.2f}" height="{bottom - top:.2f}"/>'
            )
            base += value
    return "".join(parts)


def _strips(chart: Chart, frame: _Frame) -> str:
    parts = []
    for index, step in enumerate(chart.steps):
        left = frame.x(step) - frame.column / 2
        lines = [f"step {step}"]
        for series in chart.series:
            value = series.values[index]
            lines.append(f"{series.name}: {'-' if value is None else label(value, chart.percent)}")
        tip = escape("\n".join(lines))
        parts.append(
            f'<rect class="strip" x="{left:.2f}" y="{_TOP}" width="{frame.column:.2f}" height="{_PLOT_H}">'
            f"<title>{tip}</title></rect>"
        )
    return "".join(parts)


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
