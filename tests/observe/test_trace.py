"""Spans of one process, and the file that a trace viewer opens, after a crash and a resume too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncrl.observe import trace
from asyncrl.observe.trace import Span, TraceFile


@pytest.fixture(autouse=True)
def nothing_recorded() -> Iterator[None]:
    trace.take()
    yield
    trace.take()


def spans_in(path: Path) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_text()) if event["ph"] == "X"]


def test_a_span_is_its_blocks_time_even_if_that_fails() -> None:
    with trace.span("outer"), trace.span("inner", lane="other"):
        pass
    with pytest.raises(KeyError), trace.span("failed"):
        raise KeyError
    inner, outer, failed = trace.take()
    assert (inner.lane, inner.name, outer.lane, outer.name, failed.name) == (
        "other",
        "inner",
        trace.MAIN,
        "outer",
        "failed",
    )
    assert outer.start_s <= inner.start_s
    assert inner.start_s + inner.duration_s <= outer.start_s + outer.duration_s
    assert trace.take() == []


def test_blocks_side_by_side_have_lanes_of_their_own() -> None:
    with trace.free_lane("group") as first, trace.free_lane("group") as second:
        assert (first, second) == ("group 0", "group 1")
    with trace.free_lane("group") as again:
        assert again == "group 0"


def test_spans_that_nobody_takes_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_MOST", 3)
    for number in range(5):
        trace.add(str(number), 0.0, 1.0)
    assert [span.name for span in trace.take()] == ["0", "1", "2"]


def test_the_file_is_json_and_goes_on_after_its_end_and_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    first = TraceFile(path)
    first.write("trainer", [Span("steps", "forward", 10.0, 0.5), Span("push", "push", 10.2, 1.0)])
    first.close()
    TraceFile(path).write("trainer", [Span("steps", "backward", 10.5, 0.25)])
    third = TraceFile(path)
    third.write("generator-0", [Span("engine", "busy", 10.0, 2.0)])
    third.close()
    found = spans_in(path)
    assert [(e["name"], e["ts"], e["dur"]) for e in found] == [
        ("forward", 10_000_000, 500_000),
        ("push", 10_200_000, 1_000_000),
        ("backward", 10_500_000, 250_000),
        ("busy", 10_000_000, 2_000_000),
    ]
    assert len({(e["pid"], e["tid"]) for e in found}) == 3
    assert (found[0]["pid"], found[0]["tid"]) == (found[2]["pid"], found[2]["tid"])
    names = {e["args"]["name"] for e in json.loads(path.read_text()) if e["ph"] == "M"}
    assert names == {"trainer", "steps", "push", "generator-0", "engine"}


def test_a_run_without_spans_leaves_an_empty_list(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    TraceFile(path).close()
    TraceFile(path).close()
    assert json.loads(path.read_text()) == []
