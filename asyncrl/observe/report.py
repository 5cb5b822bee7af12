"""`report.html`: one self-contained page of a run, from recipe.yaml, metrics.jsonl, summary.json and samples.jsonl.

Every one of these may be missing or cut short (a run that crashed or still goes on); the page says what is not there.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from asyncrl.observe import page, samples
from asyncrl.observe.bottleneck import bottleneck
from asyncrl.observe.charts import Chart, Series, svg
from asyncrl.observe.live import LEDGER_EVENTS, LEDGER_STATES, number
from asyncrl.observe.metrics import read_lines
from asyncrl.observe.progress import duration
from asyncrl.observe.timeline import timeline

_MOST_COLUMNS = 300
_AGE_COLOURS = ("green", "teal", "blue", "violet", "amber", "red")
_LEDGER_WORDS = {
    "running": "started, not finished",
    "ready": "finished, waiting for the trainer",
    "leased": "in the batch that is being trained",
    "trained": "used in a step that is done",
    "filtered": "left out for a named reason",
    "failed": "given up",
    "stale": "attempts given up because they were too old (events)",
    "requeued": "attempts started again (events)",
}


def write_report(run_dir: Path) -> Path:
    """Write RUN_DIR/report.html anew and return its path."""
    path = run_dir / "report.html"
    title = f"{run_dir.resolve().name} - asyncrl"
    path.write_text(page.page(title, [*sections(run_dir).values()]), encoding="utf-8")
    return path


def sections(run_dir: Path) -> dict[str, str]:
    """The parts of the page, as HTML by their names in their order; one that has nothing to show is empty."""
    text = _text(run_dir / "recipe.yaml")
    recipe = _recipe(text)
    records = [r for r in read_lines(run_dir / "metrics.jsonl") if isinstance(r.get("step"), int)]
    summary = _summary(run_dir / "summary.json")
    name = run_dir.resolve().name
    model = f"{recipe['model']}, {_data(recipe)}" if "model" in recipe else "recipe.yaml is missing or not readable"
    drawn = "".join(svg(chart) for chart in _charts(thin(records, _MOST_COLUMNS), _bound(recipe, summary)))
    busy = timeline(run_dir / "trace.json")
    chosen = samples.choose(read_lines(run_dir / "samples.jsonl"))
    return {
        "title": f'<h1>{escape(name)}</h1><p class="soft">{escape(model)}</p>',
        "headline": "".join(_headline(recipe, records, summary)),
        "charts": page.section("By step", f'<div class="charts">{drawn}</div>') if records else "",
        "timeline": page.section("Who was busy with what, at the end", f"<figure>{busy}</figure>") if busy else "",
        "ledger": page.section("Where the tasks are", _ledger(records, summary)),
        "samples": page.section("Sample trajectories", "".join(map(samples.html, chosen))) if chosen else "",
        "recipe": page.section(
            "Recipe",
            f'<details class="card"><summary>recipe.yaml</summary><pre tabindex="0">{escape(text)}</pre></details>',
        ),
    }


def thin(records: Sequence[Mapping[str, Any]], most: int, of: int | None = None) -> list[dict[str, Any]]:
    """At most `most` records: means over equal runs of steps, but the maximum of staleness/max; nothing if few.
    `of`: as if there were so many, to be shown beside another run."""
    stride = -(-(of or len(records)) // most)
    if stride <= 1:
        return [dict(record) for record in records]
    return [_mean(records[start : start + stride]) for start in range(0, len(records), stride)]


def _mean(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key in records[0]:
        values = [r[key] for r in records if isinstance(r.get(key), int | float)]
        merged[key] = (max(values) if key == "staleness/max" else statistics.fmean(values)) if values else None
    merged["step"] = records[0]["step"]
    counts = zip_longest(*(_histogram(record) for record in records), fillvalue=0)
    merged["staleness/histogram"] = [sum(tokens) for tokens in counts]
    return merged


def _histogram(record: Mapping[str, Any]) -> list[int]:
    """Trained tokens by age; empty if the record has no such list."""
    counts = record.get("staleness/histogram")
    return counts if isinstance(counts, list) and all(isinstance(n, int) for n in counts) else []


# -- parts of the page


def _headline(recipe: Mapping[str, Any], records: list[dict[str, Any]], summary: Mapping[str, Any]) -> list[str]:
    parts = []
    if not summary:
        parts.append(
            page.line("There is no readable summary.json: the run crashed, was stopped, or still goes on.", warn=True)
        )
    if not records:
        return [
            *parts,
            page.line("metrics.jsonl has no step: the run ended before its first step was done.", warn=True),
        ]
    first, last = records[0], records[-1]
    planned = recipe.get("max_steps")
    failed = summary.get("reward_failures", last.get("rewards/failed"))
    worst = max((r["staleness/max"] for r in records if r.get("staleness/max") is not None), default=None)
    figures = [
        (_percent(last.get("accuracy/mean")), "final accuracy", f"first step {_percent(first.get('accuracy/mean'))}"),
        (number(last.get("reward/mean")), "final reward", f"first step {number(first.get('reward/mean'))}"),
        (f"{last['step'] + 1}", "steps", f"of {planned} planned" if planned else ""),
        (duration(summary.get("wall_s") or last.get("time_s") or 0.0), "wall time", ""),
        (number(worst, 0), "largest staleness", f"bound {number(_bound(recipe, summary), 0)} updates"),
        (f"{last.get('tokens/generated') or 0:,}", "tokens generated", f"{failed or 0} rewards failed"),
    ]
    limits = summary.get("bottleneck") or bottleneck(_mean_shares(records))
    return [*parts, page.tiles(figures), page.line(limits)]


def _charts(records: Sequence[Mapping[str, Any]], bound: float | None) -> list[Chart]:
    steps = [r["step"] for r in records]

    def line(name: str, key: str, colour: str, spread: str | None = None) -> Series:
        return Series(name, _column(records, key), colour, spread=_column(records, spread) if spread else None)

    limit = [Series("bound", [bound] * len(steps), "red", dashed=True)] if bound is not None else []
    trainer = {
        "busy": "green",
        "wait_batch": "amber",
        "wait_publish": "violet",
        "checkpoint": "teal",
        "unaccounted": "grey",
    }
    generators = {"busy": "green", "paused": "violet", "idle": "amber"}
    return [
        Chart(
            "Reward",
            "reward",
            steps,
            [line("mean, band ± 1 std", "reward/mean", "blue", "reward/std")],
            from_zero=False,
        ),
        Chart("Accuracy", "share of trajectories", steps, [line("accuracy", "accuracy/mean", "green")], percent=True),
        Chart(
            "Staleness of trained tokens",
            "age (updates)",
            steps,
            [line("mean", "staleness/mean", "blue"), line("max", "staleness/max", "amber"), *limit],
        ),
        _ages(steps, records),
        Chart(
            "Where groups grow old",
            "age (updates)",
            steps,
            [line("in flight", "staleness/in_flight", "blue"), line("in the queue", "staleness/in_queue", "amber")],
        ),
        Chart(
            "Weight push",
            "time (s)",
            steps,
            [line("generators paused", "publish/pause_s", "violet"), line("transfer", "publish/transfer_s", "blue")],
        ),
        _stack("The trainer's time", "trainer_time", trainer, steps, records),
        _stack("The generators' time", "generator_time", generators, steps, records),
        Chart("Samples trained", "samples/s", steps, [line("samples", "throughput/samples_per_s", "teal")]),
        Chart("Tokens trained", "tokens/s", steps, [line("tokens", "throughput/tokens_per_s", "teal")]),
        Chart(
            "Gap between trainer's and engine's log-probs",
            "nats per token",
            steps,
            [line("mean gap", "offpolicy/logprob_gap", "violet"), line("KL", "offpolicy/kl", "teal")],
        ),
        Chart(
            "Importance weights",
            "share of tokens",
            steps,
            [line("effective sample size", "offpolicy/ess", "blue"), line("clipped", "offpolicy/clip_fraction", "red")],
            percent=True,
        ),
    ]


def _stack(
    title: str, role: str, colours: Mapping[str, str], steps: Sequence[int], records: Sequence[Mapping[str, Any]]
) -> Chart:
    layers = [Series(name, _column(records, f"{role}/{name}"), colour) for name, colour in colours.items()]
    return Chart(title, "share of time", steps, layers, percent=True, stacked=True)


def _ages(steps: Sequence[int], records: Sequence[Mapping[str, Any]]) -> Chart:
    """A column per step: the shares of the trained tokens by age, the oldest of many ages together."""
    histograms = [_histogram(record) for record in records]
    num_ages = max((len(counts) for counts in histograms), default=0)
    colours = _AGE_COLOURS[:num_ages]
    layers = []
    for age, colour in enumerate(colours):
        to = num_ages if age == len(colours) - 1 else age + 1
        name = f"age {age}" if to == age + 1 else f"age {age} to {to - 1}"
        shares = [sum(counts[age:to]) / sum(counts) if sum(counts) else None for counts in histograms]
        layers.append(Series(name, shares, colour))
    return Chart("Age of trained tokens", "share of tokens", steps, layers, percent=True, stacked=True)


def _ledger(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    ledger = summary.get("ledger")
    if not ledger:
        last = records[-1] if records else {}
        names = ("trained", "filtered", "failed", "running", "ready", "stale", "requeued")
        ledger = {name: last[f"groups/{name}"] for name in names if f"groups/{name}" in last}
        if not ledger:
            return '<p class="none">No counts were recorded.</p>'
    rows = [("drawn", str(ledger["drawn"]), "all tasks taken from the data")] if "drawn" in ledger else []
    for name in (*LEDGER_STATES, *LEDGER_EVENTS):
        if name in ledger:
            reasons = ledger.get(f"{name}_reasons") or {}
            why = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
            rows.append((name, str(ledger[name]), why or _LEDGER_WORDS[name]))
    return page.table(rows)


# -- figures


def _column(records: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    values = (record.get(key) for record in records)
    return [value if isinstance(value, int | float) else None for value in values]


def _mean_shares(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    keys = {key for record in records for key in record if "_time/" in key}
    columns = {key: [v for v in _column(records, key) if v is not None] for key in keys}
    return {key: statistics.fmean(values) for key, values in columns.items() if values}


def _bound(recipe: Mapping[str, Any], summary: Mapping[str, Any]) -> float | None:
    bound = summary.get("worst_case_staleness", recipe.get("max_staleness"))
    return bound if isinstance(bound, int | float) else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


# -- files


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _recipe(text: str) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _data(recipe: Mapping[str, Any]) -> str:
    data = recipe.get("data")
    return str(data.get("path", "")) if isinstance(data, dict) else str(data or "")


def _summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(_text(path))
    except ValueError:
        return {}
    return summary if isinstance(summary, dict) else {}
