"""The scores on held-out tasks: a curve over the versions of the weights, and the figures in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from asyncrl.observe import lm_eval
from asyncrl.report import page
from asyncrl.report.charts import Chart, Series, grid

_COLOURS = ("green", "blue", "amber", "violet", "teal", "red")
_MOST_LISTED = 50
_HEADS = ("evaluation", "version", "tasks", "accuracy", "reward", "pass@k", "failed", "tokens of other versions")

Lines = Sequence[Mapping[str, Any]]


def html(lines: Lines, of_lm_eval: Lines) -> str:
    """Empty if there are none."""
    return page.section("Held-out tasks", _own(lines) + _of_lm_eval(of_lm_eval))


def _own(lines: Lines) -> str:
    if not lines:
        return ""
    charts = [_chart(title, unit, key, lines) for key, (title, unit) in _CHARTS.items() if _has(lines, key)]
    newest = sorted(lines, key=lambda line: (line["version"], line["name"]), reverse=True)[:_MOST_LISTED]
    table = page.table(_HEADS, [_row(line) for line in newest], "evaluations")
    return grid(charts[:1]) + page.folded("Evaluations in figures", table)


def _of_lm_eval(lines: Lines) -> str:
    """The newest version stands first, its figures in lm_eval's order."""
    shown = sorted(lm_eval.newest(lines), key=lambda line: -line["version"])[:_MOST_LISTED]
    rows = [[str(line["version"]), *lm_eval.cells(line)] for line in shown]
    return page.table(("version", *lm_eval.HEADS), rows, "Tasks of lm_eval") if rows else ""


def tiles(lines: Lines) -> list[tuple[str, str, str]]:
    """The newest score of the first evaluation, for the top of the page."""
    own = [line for line in lines if line["name"] == lines[0]["name"] and line["accuracy"] is not None]
    if not own:
        return []
    newest, best = max(own, key=lambda line: line["version"]), max(own, key=lambda line: line["accuracy"])
    said = f"best {_percent(best['accuracy'])}, version {best['version']}"
    return [(_percent(newest["accuracy"]), f"held-out accuracy, {newest['name']}", said)]


_CHARTS = {
    "accuracy": ("Accuracy on held-out tasks, band: 95 % interval", "share of rollouts"),
    "reward": ("Reward on held-out tasks, band: 95 % interval", "reward"),
}
"""By what they show; the first one that has figures is drawn."""


def _has(lines: Lines, key: str) -> bool:
    return any(line.get(key) is not None for line in lines)


def _chart(title: str, unit: str, key: str, lines: Lines) -> Chart:
    versions = sorted({line["version"] for line in lines})
    ordered = sorted(lines, key=lambda line: line["name"])
    series = []
    for colour, (name, group) in zip(_COLOURS, groupby(ordered, lambda line: line["name"]), strict=False):
        by_version = {line["version"]: line for line in group}
        found = [by_version.get(version, {}) for version in versions]
        band = [_band(line, key) for line in found]
        series.append(Series(name, [line.get(key) for line in found], colour, band=band, joined=True))
    return Chart(title, unit, versions, series, percent=key == "accuracy", x="version")


def _band(line: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    low, high = line.get(f"{key}_low"), line.get(f"{key}_high")
    return None if low is None or high is None else (low, high)


def _row(line: Mapping[str, Any]) -> list[str]:
    rollouts = f" x {line['n']}" if line["n"] > 1 else ""
    passed = ", ".join(f"@{k} {_percent(value)}" for k, value in line["pass_at"].items())
    return [
        *(line["name"], str(line["version"]), f"{line['tasks']}{rollouts}"),
        _with_interval(line, "accuracy", _percent),
        _with_interval(line, "reward", lambda value: f"{value:.3g}"),
        *(passed or "-", _percent(line["failed_share"]), _percent(line["other_versions_share"])),
    ]


def _with_interval(line: Mapping[str, Any], key: str, text: Any) -> str:
    if line.get(key) is None:
        return "-"
    band = _band(line, key)
    return text(line[key]) + (f" ({text(band[0])} to {text(band[1])})" if band else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
