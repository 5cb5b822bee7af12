"""The live page: what it serves, and in a real browser that it follows a run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncrl.cli import main
from asyncrl.observe.metrics import MetricsWriter, write_summary
from asyncrl.observe.trace import Span, TraceFile
from asyncrl.runtime.lock import RunLock

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def run_dir(made_up: Any, tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(made_up.RECIPE)
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for record in made_up.records(7):
        writer.write(record)
    TraceFile(tmp_path / "trace.json").write("trainer", [Span("steps", "backward", 100.0, 5.0)])
    return tmp_path


class Watching:
    """`asyncrl watch` in a process of its own."""

    def __init__(self, run_dir: Path) -> None:
        command = [sys.executable, "-m", "asyncrl", "watch", str(run_dir), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = re.search(r"http://127\.0\.0\.1:\d+/\S+/", self.process.stdout.readline())[0]

    def get(self, path: str = "") -> Any:
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                    text = answer.read().decode()
                    return json.loads(text) if path else text
            except urllib.error.HTTPError:
                raise
            except OSError:  # it says its address before it serves
                if time.monotonic() > deadline:
                    raise

    def dom(self) -> str:
        """What a browser makes of the page, after five of its seconds."""
        command = [CHROMIUM, "--headless", "--no-sandbox", "--virtual-time-budget=5000", "--dump-dom", self.url]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def watching(run_dir: Path) -> Iterator[Watching]:
    watching = Watching(run_dir)
    yield watching
    watching.close()


def test_the_page_follows_the_run(watching: Watching, run_dir: Path, made_up: Any) -> None:
    page = watching.get()
    assert "not running, and not done" in page
    assert "trainer steps" in page  # the timeline's row
    first = watching.get("sections")
    assert first["sections"]["charts"].count("<svg") >= 6
    assert watching.get(f"sections?seen={first['tag']}") == {"tag": first["tag"], "sections": {}}
    with RunLock(run_dir):
        running = watching.get(f"sections?seen={first['tag']}")
    assert "running; this page follows it" in running["sections"]["state"]
    MetricsWriter(run_dir / "metrics.jsonl").write(made_up.records(8)[7])
    write_summary(run_dir / "summary.json", {"ledger": {"drawn": 1}, "bottleneck": "balanced"})
    done = watching.get(f"sections?seen={running['tag']}")["sections"]
    assert ">done<" in done["state"]
    assert "step 7" in done["charts"]


def test_without_the_token_there_is_nothing(watching: Watching) -> None:
    host = watching.url.rsplit("/", 2)[0]
    watching.get()
    for path in ("/", "/x/", "/x/sections", "/docs", "/openapi.json"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(host + path, timeout=10)
        assert error.value.code == 404


def test_an_address_that_is_taken_is_one_sentence(
    watching: Watching, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = re.search(r":(\d+)/", watching.url)[1]
    assert main(["watch", str(run_dir), "--port", port]) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no browser on this machine")
def test_a_browser_shows_it(watching: Watching, run_dir: Path, made_up: Any) -> None:
    watching.get()
    assert "Reward" in watching.dom()


def test_a_long_run_is_there_in_two_seconds(made_up: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(made_up.RECIPE)
    lines = [json.dumps(record) for record in made_up.records(2000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    sample = {"task": 1, "prompt": "p" * 300, "completion": "c" * 600, "reward": 1.0, "tokens": ["ab"] * 300}
    samples = [json.dumps({"step": i // 2, **sample, "versions": [i // 2] * 300}) for i in range(4000)]
    (tmp_path / "samples.jsonl").write_text("\n".join(samples) + "\n")
    spans = [Span("steps", "backward", i * 0.01, 0.01) for i in range(500_000)]
    TraceFile(tmp_path / "trace.json").write("trainer", spans)
    watching = Watching(tmp_path)
    try:
        watching.get()
        began = time.monotonic()
        page = watching.get()
        assert time.monotonic() - began < 2
        assert len(page) < 3_000_000
    finally:
        watching.close()
