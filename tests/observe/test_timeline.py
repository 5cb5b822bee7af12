"""What the timeline shows of a trace, and how much of it."""

from __future__ import annotations

import re
from pathlib import Path

from asyncrl.observe.timeline import WINDOW_S, read, timeline, window
from asyncrl.observe.trace import Span, TraceFile


def test_rows_are_actors_and_lanes_and_other_lanes_are_left_out(tmp_path: Path) -> None:
    trace = TraceFile(tmp_path / "trace.json")
    trace.write("trainer", [Span("steps", "forward", 100.0, 5.0), Span("push", "push", 101.0, 2.0)])
    trace.write("generator-1", [Span("engine", "busy", 99.0, 4.0), Span("rollout 3", "decode", 99.0, 1.0)])
    with (tmp_path / "trace.json").open("a") as file:
        file.write('{"ph": "X", "name": "cut o')
    drawn = timeline(tmp_path)
    rows = re.findall(r'text-anchor="end">([^<]+)</text>', drawn)
    assert rows[:3] == ["generator-1 engine", "trainer push", "trainer steps"]
    assert "forward, 5.00 s, 5 s before the last" in drawn
    assert timeline(tmp_path / "missing") == ""


def test_names_of_one_colour_share_its_place_in_the_legend(tmp_path: Path) -> None:
    spans = [Span("steps", name, 10.0 * n, 9.0) for n, name in enumerate(("fetch", "pack", "forward"))]
    TraceFile(tmp_path / "trace.json").write("trainer", spans)
    legend = timeline(tmp_path).partition("<svg")[0]
    assert re.findall(r"</i>([^<]+)</span>", legend) == ["fetch, pack", "forward"]


def test_short_bars_are_shown_for_a_shorter_time(tmp_path: Path) -> None:
    """A long idle time of another row, before, does not press them together."""
    path = tmp_path / "trace.json"
    trace = TraceFile(path)
    trace.write("generator-0", [Span("engine", "idle", 0.0, 59.0)])
    trace.write("trainer", [Span("steps", "forward", 50 + 0.1 * n, 0.1) for n in range(500)])
    shown = window(read(tmp_path))
    assert 9.9 < shown.end_s - shown.start_s < 10.1
    assert {bar.row for bar in shown.bars} == {"trainer steps"}
    trace.write("trainer", [Span("push", "push", 99.0, 500.0)])
    assert window(read(tmp_path)).start_s == 599.0 - WINDOW_S
