"""A real run is scraped as Prometheus would."""

from __future__ import annotations

import json
import math
import re
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import fresh
from test_run import SIMULATED, kill_group, records, wait_for

from asyncrl.observe.grafana import dashboard, metric
from asyncrl.observe.prometheus import Prometheus

pytestmark = pytest.mark.slow


def scrape(address: str) -> dict[str, float]:
    """Our gauges by name; they carry no more than one run's values."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except TimeoutError:  # of a busy machine; the test has a deadline of its own
        return {}
    return {
        found[1]: float(found[2]) for found in re.finditer(r'^(ray_asyncrl_\w+)\{.*run="a-run".*\} (\S+)$', text, re.M)
    }


def equal(record: dict[str, Any], scraped: dict[str, float]) -> bool:
    numbers = {metric(k): v for k, v in record.items() if isinstance(v, int | float) and math.isfinite(v)}
    return all(name in scraped and math.isclose(scraped[name], value) for name, value in numbers.items())


def test_the_agent_exports_what_metrics_jsonl_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    run_dir = tmp_path / "a-run"
    steady = ["rollout.engine_args={token_s: 0.3}", "max_steps=1000", f"run_dir={run_dir}"]
    process = fresh("train", "recipes/tiny.yaml", *SIMULATED, *steady)
    try:
        file = run_dir / "prometheus.json"
        wait_for(file.exists, process, "the address")
        [entry] = json.loads(file.read_text())
        [address] = entry["targets"]
        listening = [c for c in psutil.net_connections("tcp") if c.status == "LISTEN"]
        assert {c.laddr.ip for c in listening if c.laddr.port == int(address.rpartition(":")[2])} == {"127.0.0.1"}

        def agrees() -> bool:
            scraped = scrape(address)
            shown.update(scraped)
            return any(equal(record, scraped) for record in records(run_dir))

        shown: dict[str, float] = {}
        wait_for(agrees, process, "a scrape that equals a record")
        assert shown[metric("staleness/bound")] == 1
        assert shown[metric("max_steps")] == 1000
        queried = set(re.findall(r"\bray_\w+", json.dumps(dashboard())))
        of_no_step = {metric(key) for key, value in records(run_dir)[-1].items() if value is None}
        assert queried - set(shown) <= of_no_step
        assert len(queried & set(shown)) > 25
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        assert not file.exists()
    finally:
        kill_group(process)


def test_names_of_any_letters_are_exported(tmp_path: Path, local_ray: Callable[..., None]) -> None:
    """Of a run's folder, and of what a reward logs."""
    local_ray(num_cpus=1)
    (run_dir := tmp_path / "Übung").mkdir()
    exported = Prometheus(run_dir, {"max_steps": 1.0})
    exported.log(0, {"reward/größe": 1.0})
    exported.close()
