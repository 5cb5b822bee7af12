"""The metrics as gauges of Ray, which every node exports in Prometheus' format; docs/grafana.json shows them.

    driver --gauges, every 10 s--> Ray's agent on its node <--scrape-- Prometheus
The address is in RUN_DIR/prometheus.json while the run goes on, as Prometheus' `file_sd_configs` reads it. The agent of
a Ray that the run has started listens on loopback.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import ray
from ray.util.metrics import Gauge

from asyncrl.observe.metrics import gauge_name


class Prometheus:
    """A tracker (observe/trackers.py). `constants` are exported from the start."""

    def __init__(self, run_dir: Path, constants: Mapping[str, float]) -> None:
        self._tags = {"run": _ascii(run_dir.name)}
        self._gauges: dict[str, Gauge] = {}
        self._constant = set(constants)
        self._address_file = run_dir / "prometheus.json"
        for key, value in constants.items():
            self._set(key, value)
        if target := _target():
            entry = {"targets": [target], "labels": {"job": "asyncrl"}}
            self._address_file.write_text(json.dumps([entry]) + "\n")

    def log(self, step: int, scalars: dict[str, float]) -> None:
        for key, value in scalars.items():
            self._set(key, value)
        for key in self._gauges.keys() - scalars.keys() - self._constant:
            # A gauge says its last value for ever; this step has none.
            self._set(key, math.nan)

    def _set(self, key: str, value: float) -> None:
        if key not in self._gauges:
            self._gauges[key] = Gauge(gauge_name(key), _ascii(key), tuple(self._tags))
        self._gauges[key].set(value, self._tags)

    def close(self) -> None:
        self._address_file.unlink(missing_ok=True)


def _ascii(text: str) -> str:
    """Ray's metrics take no other text."""
    return text.encode("ascii", "backslashreplace").decode()


def _target() -> str | None:
    """HOST:PORT of this node's agent; None if Ray's metrics are turned off."""
    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here and node.get("MetricsExportPort", -1) > 0:
            return f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
    return None
