"""Curves of runs that do not learn, for docs/not_learning.md: the records of real runs, drawn from the report's charts.

`curves.json` has of each run its command and a few figures of each step; the pictures are made of nothing else, the one
of stale tokens of `docs/objectives/results.json` (scripts/compare_objectives).
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from asyncrl.report.charts import Chart, Series
from asyncrl.report.curves import learning, machinery
from asyncrl.report.page import palettes

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "failures"
CURVES = OUT / "curves.json"
_TINY = ("recipes/tiny.yaml", "checkpoint.every_steps=0", "track.wandb=off")
_REWARDS = "./scripts/failing_rewards.py"
_STOPS = ",".join(map(str, range(32, 96)))
RUNS: dict[str, tuple[str, ...]] = {
    "flat": (*_TINY, "max_steps=40", "reward=asyncrl.rewards.math:exact_match"),
    "entropy": (*_TINY, "max_steps=60", "trainer.learning_rate=5e-3", f"reward={_REWARDS}:two_prizes"),
    "length": (
        *(*_TINY, "max_steps=60", "trainer.learning_rate=5e-3", f"reward={_REWARDS}:length"),
        *("rollout.max_new_tokens=48", f"rollout.stop_token_ids=[{_STOPS}]"),
    ),
    "rate": (
        *("recipes/arithmetic.yaml", "checkpoint.every_steps=0", "track.wandb=off", "max_steps=12"),
        *("trainer.learning_rate=5e-4", "eval=[]"),
    ),
}
"""What `asyncrl train` is given for each."""
_SHOWN = {
    "flat": ("Reward", "Gradient norm"),
    "entropy": ("Reward", "Entropy"),
    "length": ("Reward", "Completion length", "Reward part: letters"),
    "rate": ("Reward", "Entropy", "Importance weights"),
}
"""Charts of the report in each picture."""
_KEPT = (
    *(
        "reward/mean",
        "reward/std",
        "reward/min",
        "reward/max",
        "reward/letters",
        "completion/tokens_mean",
        "trainer/entropy",
        "trainer/grad_norm",
    ),
    *("offpolicy/ess", "offpolicy/clip_fraction"),
)
_STALENESS, _SEED = 16, 1
_OBJECTIVES = {"reinforce": ("no ratio", "amber"), "grpo": ("clipped ratio", "blue")}
_PANEL_W, _PANEL_H, _LEFT, _TOP, _RIGHT, _BOTTOM = 200, 120, 52, 44, 12, 36
_MOST_TICKS = 5


# -- the records


def run(name: str) -> dict[str, Any]:
    """Run it, and give what is kept of it. Raises AssertionError if it does not come to its last step."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / name
        command = [sys.executable, "-m", "asyncrl", "train", *RUNS[name], f"run_dir={run_dir}"]
        # `rate` ends with exit code 1: its weights, in bf16, round too coarsely for the check of the export.
        subprocess.run(command, cwd=ROOT, check=False, timeout=3600)
        curves = kept(name, run_dir)
        assert f"max_steps={len(curves['reward/mean'])}" in RUNS[name], f"{name} did not come to its end"
        return curves


def kept(name: str, run_dir: Path) -> dict[str, Any]:
    """Of a run that is done."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    figures = {key: [_short(record.get(key)) for record in records] for key in _KEPT}
    return {"command": " ".join(RUNS[name]), **{k: v for k, v in figures.items() if any(x is not None for x in v)}}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


# -- the pictures


def made() -> dict[Path, str]:
    """Pictures as they should be."""
    curves = json.loads(CURVES.read_text())
    pictures = {name: _picture(_charts(name, curves[name])) for name in RUNS}
    return {OUT / f"{name}.svg": text for name, text in {**pictures, "stale": _picture([_stale()])}.items()}


def _charts(name: str, curves: dict[str, Any]) -> list[Chart]:
    columns = {key: values for key, values in curves.items() if key != "command"}
    steps = range(len(columns["reward/mean"]))
    records = [{"step": step, **{key: values[step] for key, values in columns.items()}} for step in steps]
    drawn = {chart.title: chart for chart in [*machinery(records), *learning(records)]}
    return [drawn[title] for title in _SHOWN[name]]


def _stale() -> Chart:
    runs = json.loads((ROOT / "docs/objectives/results.json").read_text())["runs"]
    found = {r["objective"]: r for r in runs if (r["staleness"], r["seed"]) == (_STALENESS, _SEED)}
    lines = [Series(name, found[key]["rewards"], colour) for key, (name, colour) in _OBJECTIVES.items()]
    title = f"Tokens {_STALENESS} updates old"
    return Chart(title, "share of right answers", found["grpo"]["steps"], lines, percent=True)


def _picture(charts: Sequence[Chart]) -> str:
    light, dark = palettes()
    used = ("card", "ink", "soft", "rule", *sorted({series.colour for chart in charts for series in chart.series}))
    rules = [" ".join(f".{name} {{ --c: {palette[name]}; }}" for name in used) for palette in (light, dark)]
    width = len(charts) * (_LEFT + _PANEL_W + _RIGHT)
    height = _TOP + _PANEL_H + _BOTTOM
    panels = "".join(_panel(chart, i * (_LEFT + _PANEL_W + _RIGHT) + _LEFT) for i, chart in enumerate(charts))
    label = escape(", ".join(chart.title for chart in charts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{label}" font-family="system-ui, sans-serif" font-size="11">\n'
        f"<style>{rules[0]} @media (prefers-color-scheme: dark) {{ {rules[1]} }} "
        "text, .fill { fill: var(--c); } .line { stroke: var(--c); fill: none; }</style>\n"
        f'<rect class="card fill" width="{width}" height="{height}" rx="10"/>\n{panels}</svg>\n'
    )


def _panel(chart: Chart, x: int) -> str:
    spans = [value for series in chart.series for value in _reached(series)]
    low, high = min([0.0, *spans] if chart.from_zero else spans), max(spans)
    ticks = list(_ticks(low, high if high > low else low + 1))
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = chart.steps[0], chart.steps[-1]

    def at(step: float, value: float) -> str:
        place = _PANEL_W * (step - first) / max(1, last - first)
        return f"{place:.1f},{_PANEL_H * (high - value) / (high - low):.1f}"

    parts = [f'<text class="ink" x="{4 - _LEFT}" y="-26" font-size="13" font-weight="600">{escape(chart.title)}</text>']
    for tick in ticks:
        y = at(first, tick).partition(",")[2]
        parts.append(f'<path class="line rule" d="M0,{y} H{_PANEL_W}"/>')
        text = f"{100 * tick:g}%" if chart.percent else f"{tick:g}"
        parts.append(f'<text class="soft" x="-6" y="{float(y) + 4:.1f}" text-anchor="end">{text}</text>')
    for step, anchor in ((first, "start"), ((first + last) // 2, "middle"), (last, "end")):
        place = at(step, low).partition(",")[0]
        parts.append(f'<text class="soft" x="{place}" y="{_PANEL_H + 15}" text-anchor="{anchor}">{step}</text>')
    parts.append(f'<text class="soft" x="{_PANEL_W / 2:g}" y="{_PANEL_H + 29}" text-anchor="middle">{chart.x}</text>')
    left = 0.0
    for series in chart.series:
        parts.append(f'<path class="line {series.colour}" stroke-width="3" d="M{left:g},-13 h14"/>')
        parts.append(f'<text class="soft" x="{left + 18:g}" y="-9">{escape(series.name)}</text>')
        left += 30 + 5.6 * len(series.name)
        parts += _curve(chart, series, at)
    return f'<g transform="translate({x} {_TOP})">{"".join(parts)}</g>\n'


def _curve(chart: Chart, series: Series, at: Any) -> Iterator[str]:
    """Its band, and its line, which is broken where a step has no figure."""
    points = list(zip(chart.steps, series.values, series.band or [None] * len(chart.steps), strict=True))
    edges = [(step, band) for step, _, band in points if band]
    if edges:
        there, back = [at(s, high) for s, (_, high) in edges], [at(s, low) for s, (low, _) in reversed(edges)]
        yield f'<path class="fill {series.colour}" opacity=".15" d="M{" L".join([*there, *back])} Z"/>'
    shown = "".join("|" if value is None else f" {at(step, value)}" for step, value, _ in points)
    for stretch in filter(None, shown.split("|")):
        yield f'<path class="line {series.colour}" stroke-width="2" d="M{" L".join(stretch.split())}"/>'


def _reached(series: Series) -> Iterator[float]:
    yield from (value for value in series.values if value is not None)
    yield from (edge for band in series.band or () if band for edge in band)


def _ticks(low: float, high: float) -> Iterator[float]:
    """Round numbers from below `low` to above `high`."""
    power = 10.0 ** math.floor(math.log10((high - low) / _MOST_TICKS))
    distance = next(d * power for d in (1, 2, 5, 10) if (high - low) / (d * power) <= _MOST_TICKS)
    yield from (
        round(number * distance, 10)
        for number in range(math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9) + 1)
    )
