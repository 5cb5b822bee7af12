"""The dashboard: well formed, and of metrics that there are (tests/orchestrator/test_prometheus.py asks a run)."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

from asyncrl.metric_names import STEP_KEYS
from asyncrl.observe.grafana import dashboard, metric

FILE = Path(__file__).resolve().parents[2] / "docs/grafana.json"
BESIDE = {"staleness/bound", "max_steps", "rewards/failed", "health/warnings"}
"""Exported too: two constants of the run, and two that every record has of the recorder."""


def queries() -> list[str]:
    board = dashboard()
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]] + [
        variable["definition"] for variable in board["templating"]["list"] if variable["type"] == "query"
    ]


def metrics() -> set[str]:
    """Names in its queries that are no functions of Prometheus, labels or variables."""
    return {name for query in queries() for name in re.findall(r"\bray_\w+", query)}


def test_the_file_is_what_the_module_prints() -> None:
    assert json.loads(FILE.read_text()) == dashboard(), "python -m asyncrl.observe.grafana > docs/grafana.json"


def test_every_metric_is_one_that_is_exported() -> None:
    assert metrics() - {metric(key) for key in {*STEP_KEYS, *BESIDE}} == set()
    for query in queries():
        assert re.fullmatch(r'(?:deriv\()?ray_asyncrl_\w+\{run=~"\$run"\}(?:\[5m\]\))?|label_values\(\w+, run\)', query)
        assert query.count("(") == query.count(")")


def test_the_important_metrics_are_there() -> None:
    shown = metrics()
    for role in ("reward", "accuracy", "staleness", "trainer_time", "generator_time", "throughput", "publish"):
        assert {metric(key) for key in STEP_KEYS if key.startswith(f"{role}/")} <= shown
    assert {metric(key) for key in STEP_KEYS if key.startswith("offpolicy/")} <= shown


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 12
    for panel in panels:
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        assert not overlap(one, other)


def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )
