"""The step record: names, shares that sum to 1, accuracy, files that survive a crash."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.metric_names import MORE_KEYS, STEP_KEYS
from asyncrl.observe.metrics import (
    MetricsWriter,
    complete,
    read_lines,
    result,
    shares,
    write_summary,
)
from asyncrl.verdicts import accuracy

seconds = st.floats(0, 1e6)


@given(st.dictionaries(st.sampled_from(["busy", "wait_batch", "checkpoint"]), seconds), seconds)
def test_shares_sum_to_one_and_are_never_negative(durations: dict[str, float], wall_s: float) -> None:
    found = shares(durations, wall_s)
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= 0


def test_shares_of_a_known_window() -> None:
    assert shares({"busy": 6, "wait_batch": 3}, 10) == pytest.approx(
        {"busy": 0.6, "wait_batch": 0.3, "unaccounted": 0.1}
    )


def test_accuracy_leaves_failed_rewards_out() -> None:
    assert accuracy([1.0, 0.5, None, -1.0], []) == pytest.approx(1 / 3)
    assert accuracy([1.0, 0.5, 2.0], []) is None
    assert accuracy([None], []) is None
    assert accuracy([0.0, 0.0], [{"accuracy": 1.0}, {"accuracy": 0.0}]) == 0.5


def test_a_record_that_lacks_a_name_is_refused() -> None:
    record = dict.fromkeys(STEP_KEYS, 0)
    complete(record)
    del record["offpolicy/ess"]
    with pytest.raises(ValueError, match="record of step 0 lacks offpolicy/ess"):
        complete(record)


def test_lines_are_cut_at_the_resumed_step(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "m.jsonl")
    for step in range(5):
        writer.write({"step": step, "loss": math.nan})
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    writer.truncate_after(3)
    assert read_lines(tmp_path / "m.jsonl") == [{"step": s, "loss": None} for s in range(3)]


def test_summary_is_plain_json(tmp_path: Path) -> None:
    write_summary(tmp_path / "s.json", {"a": math.inf, "b": (1, 2)})
    assert json.loads((tmp_path / "s.json").read_text()) == {"a": None, "b": [1, 2]}
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]


def test_the_names_are_those_of_the_made_up_run(made_up: Any) -> None:
    for record in made_up.records():
        complete(record)


def test_the_names_are_those_that_records_have() -> None:
    """As the sources have them that make a record; `checkpoint.keep_best` may be any of them."""
    package = Path(__file__).parents[2] / "asyncrl"
    made = "orchestrator/recorder.py", "trainer/learner.py", "trainer/step_report.py", "algorithms/offpolicy.py"
    found = {name for file in made for name in re.findall(r'"([a-z_]+/[a-z_0-9]+)"', (package / file).read_text())}
    assert len(found) > 40
    assert found - {*STEP_KEYS, *MORE_KEYS} == {"staleness/histogram"}
    assert set(MORE_KEYS) - found == {f"offpolicy/{name}" for name in ("kl_k1", "masked_fraction")}


def test_the_result_of_a_run_is_one_line() -> None:
    first = {"step": 0, "time_s": 3.0, "reward/mean": 0.25, "accuracy/mean": None, "trainer/loss": 0.5}
    last = {"step": 9, "time_s": 75.0, "reward/mean": 0.75, "accuracy/mean": None, "trainer/loss": 0.25}
    assert result(first, last) == "10 steps in 1 min 15 s of training, reward 0.250 -> 0.750"
    of_answers = [{**record, "reward/mean": None, "data/epoch": 1.0} for record in (first, last)]
    assert result(*of_answers) == "10 steps in 1 min 15 s of training, loss 0.500 -> 0.250"
    assert result({}, {}) == ""
