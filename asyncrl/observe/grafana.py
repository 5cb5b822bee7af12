"""The Grafana dashboard of a run, over the gauges that Ray exports: `python -m asyncrl.observe.grafana` prints it.

docs/grafana.json is what it prints; a test compares them, and asks a real run for every metric in it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from asyncrl.observe.metrics import gauge_name

_COLUMNS, _HEIGHT, _GRID_WIDTH = 3, 8, 24
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class _Panel:
    title: str
    keys: tuple[str, ...]
    """Names of the record's metrics."""
    unit: str = "short"
    per_second: bool = False
    """Shown as a rate; for totals."""
    stacked: bool = False
    low: float | None = None
    high: float | None = None


def _of(role: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{role}/{name}" for name in names)


PANELS = (
    _Panel("Reward", _of("reward", "mean", "std")),
    _Panel("Accuracy", ("accuracy/mean",), "percentunit", low=0, high=1),
    _Panel("Steps", ("step", "max_steps")),
    _Panel("Staleness, in updates", _of("staleness", "mean", "max", "bound"), low=0),
    _Panel("Where staleness comes from, in updates", _of("staleness", "in_flight", "in_queue"), stacked=True, low=0),
    _Panel("Groups at hand", _of("groups", "running", "ready"), low=0),
    _Panel(
        "Trainer's time",
        _of("trainer_time", "busy", "wait_batch", "wait_publish", "checkpoint", "unaccounted"),
        "percentunit",
        stacked=True,
        low=0,
        high=1,
    ),
    _Panel(
        "Generators' time", _of("generator_time", "busy", "paused", "idle"), "percentunit", stacked=True, low=0, high=1
    ),
    _Panel("Groups per second", _of("groups", "trained", "filtered", "stale", "failed", "requeued"), per_second=True),
    _Panel("Tokens per second", ("throughput/tokens_per_s",), low=0),
    _Panel("Samples per second", ("throughput/samples_per_s",), low=0),
    _Panel("Tokens generated, in all", ("tokens/generated",)),
    _Panel("Weight push", _of("publish", "pause_s", "transfer_s"), "s", low=0),
    _Panel("Bytes of a push", ("publish/bytes",), "bytes", low=0),
    _Panel("Rewards that failed, in all", ("rewards/failed",), low=0),
    _Panel(
        "Completions cut off, rewards that failed",
        ("completion/truncated_share", "rewards/failed_share"),
        "percentunit",
        low=0,
        high=1,
    ),
    _Panel("Off-policy: gap and KL", _of("offpolicy", "logprob_gap", "kl")),
    _Panel("Off-policy: effective and clipped share", _of("offpolicy", "ess", "clip_fraction"), "percentunit", low=0),
    _Panel("Warnings that hold", ("health/warnings",), low=0),
)


def dashboard() -> dict[str, Any]:
    """As Grafana imports it; data source and run are chosen on the page."""
    return {
        "uid": "asyncrl",
        "title": "asyncrl",
        "tags": ["asyncrl"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_datasources(), _runs()]},
        "panels": [_panel(number, panel) for number, panel in enumerate(PANELS)],
    }


def metric(key: str) -> str:
    """The name of a record's metric in Prometheus."""
    return f"ray_{gauge_name(key)}"


def _datasources() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _runs() -> dict[str, Any]:
    query = f"label_values({metric('step')}, run)"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": _DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "runs"},
        "refresh": 2,
        "sort": 2,
        "includeAll": False,
        "multi": True,
    }


def _panel(number: int, panel: _Panel) -> dict[str, Any]:
    width = _GRID_WIDTH // _COLUMNS
    row, column = divmod(number, _COLUMNS)
    limits = {name: value for name, value in (("min", panel.low), ("max", panel.high)) if value is not None}
    style = {
        "drawStyle": "line",
        "lineWidth": 2,
        "fillOpacity": 30 if panel.stacked else 0,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
    }
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _DATASOURCE,
        "gridPos": {"x": column * width, "y": row * _HEIGHT, "w": width, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, **limits, "custom": style}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [_target(letter, key, panel) for letter, key in zip("ABCDEFGH", panel.keys, strict=False)],
    }


def _target(letter: str, key: str, panel: _Panel) -> dict[str, Any]:
    series = f'{metric(key)}{{run=~"$run"}}'
    # A gauge that only rises, and goes on after a resume: deriv takes gauges, rate would not.
    expression = f"deriv({series}[5m])" if panel.per_second else series
    name = key.partition("/")[2] or key
    return {"refId": letter, "datasource": _DATASOURCE, "expr": expression, "legendFormat": f"{name} {{{{run}}}}"}


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1)
    sys.stdout.write("\n")
