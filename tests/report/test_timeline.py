"""What the timeline shows of a trace, and how much of it."""

from __future__ import annotations

from pathlib import Path

from plots import figures

from asyncrl.observe.trace import Span, TraceFile
from asyncrl.report.timeline import WINDOW_S, read, timeline, window


def test_rows_are_actors_and_lanes_and_other_lanes_are_left_out(tmp_path: Path) -> None:
    trace = TraceFile(tmp_path / "trace.json")
    trace.write("trainer", [Span("steps", "forward", 100.0, 5.0), Span("push", "push", 101.0, 2.0)])
    trace.write("generator-1", [Span("engine", "busy", 99.0, 4.0), Span("rollout 3", "decode", 99.0, 1.0)])
    with (tmp_path / "trace.json").open("a") as file:
        file.write('{"ph": "X", "name": "cut o')
    traces = figures(timeline(tmp_path))["time of the actors"]["data"]
    assert {row for trace in traces for row in trace["y"]} == {"generator-1 engine", "trainer push", "trainer steps"}
    assert [trace["hovertext"] for trace in traces] == [["busy, 4.00 s"], ["forward, 5.00 s"], ["push, 2.00 s"]]
    assert [(trace["base"], trace["x"]) for trace in traces] == [([-6], [4]), ([-5], [5]), ([-4], [2])]
    assert timeline(tmp_path / "missing") == ""


def test_names_of_one_colour_share_its_place_in_the_legend(tmp_path: Path) -> None:
    spans = [Span("steps", name, 10.0 * n, 9.0) for n, name in enumerate(("pack", "fetch", "forward", "<b>x"))]
    TraceFile(tmp_path / "trace.json").write("trainer", spans)
    traces = figures(timeline(tmp_path))["time of the actors"]["data"]
    shown = {trace["marker"]["color"]: trace["name"] for trace in traces}
    assert shown == {"--teal": "fetch, pack", "--blue": "forward", "--grey": "&lt;b&gt;x"}


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
