"""Curves of many steps, thinned, and of many ages."""

from __future__ import annotations

from typing import Any

import pytest
from plots import figures

from asyncrl.report.charts import grid
from asyncrl.report.curves import learning, machinery, thin


def drawn(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return figures(grid([*learning(records), *machinery(records)]))


def test_ages_are_summed_over_thinned_steps_and_the_oldest_drawn_together(made_up: Any) -> None:
    records = [{"step": step, "staleness/histogram": [4 - step] + [2] * (8 * step)} for step in range(4)]
    assert [r["staleness/histogram"] for r in thin(records, 2)] == [[7] + [2] * 8, [3] + [4] * 16 + [2] * 8]
    records = made_up.records(4)
    records[3]["staleness/histogram"] = [6] + [1] * 9 + [0, 5]
    ages = drawn(records)["Age of trained tokens"]
    last = {age["name"]: age["y"][3] for age in ages["data"]}
    assert last == {"age 0": 0.3, "age 1": 0.05, "age 2": 0.05, "age 3": 0.05, "age 4": 0.05, "age 5 to 11": 0.5}
    assert {age["type"] for age in ages["data"]} == {"bar"}
    assert (ages["layout"]["barmode"], ages["layout"]["yaxis"]["range"]) == ("stack", [0, 1])


def test_a_long_run_is_thinned_to_means_and_what_is_extreme_stays(made_up: Any) -> None:
    records = made_up.records(10)
    records[3]["staleness/max"] = 9
    for step, record in enumerate(records):
        record |= {"reward/min": -4.0 if step == 5 else 0.0, "reward/max": 7.0 if step == 4 else 1.0}
    thinned = thin(records, 3)
    assert [r["step"] for r in thinned] == [0, 4, 8]
    assert [r["staleness/max"] for r in thinned] == [9, 2, 2]
    assert (thinned[1]["reward/min"], thinned[1]["reward/max"]) == (-4.0, 7.0)
    assert thinned[2]["reward/mean"] == (records[8]["reward/mean"] + records[9]["reward/mean"]) / 2


@pytest.mark.parametrize("figure", [5e-324, 1.7e308, -1.7e308, float("inf"), float("nan")])
def test_figures_at_the_ends_of_what_a_float_holds_are_drawn(made_up: Any, figure: float) -> None:
    records = made_up.records(3)
    for step, key in enumerate(("completion/truncated_share", "reward/mean", "reward/std")):
        records[step][key] = figure
    found = drawn(records)
    assert len(found) == 14
    numbers = [y for shown in found.values() for trace in shown["data"] for y in trace["y"] if y is not None]
    assert all(y == 0 or 1e-13 < abs(y) < 1e16 for y in numbers)


def test_a_run_with_a_teacher_or_demonstrations_shows_how_far_it_is_from_them(made_up: Any) -> None:
    records = made_up.records(3)
    assert "Reverse KL from the teacher" not in drawn(records)
    for step, record in enumerate(records):
        record["distil/kl"] = 2.0**-step
    first, *_ = drawn(records).items()
    assert first[0] == "Reverse KL from the teacher"
    assert first[1]["data"][0]["y"] == [1.0, 0.5, 0.25]
    assert {"Reward", "Accuracy"} <= drawn(records).keys()
    alone = [record | dict.fromkeys(("reward/mean", "reward/std", "accuracy/mean")) for record in records]
    assert not {"Reward", "Accuracy"} & drawn(alone).keys()
    for record in records:
        record["sft/nll"] = record.pop("distil/kl")
    first, *_ = drawn(records).items()
    assert first[0] == "Loss of the demonstrations"
    assert first[1]["data"][0]["y"] == [1.0, 0.5, 0.25]


def test_figures_that_are_missing_leave_gaps() -> None:
    records: list[dict[str, Any]] = [{"step": step} for step in range(6)]
    assert drawn(records) == {}
    assert grid([*learning(records), *machinery(records)]).count("no figures") == 10
    for step, figure in ((0, 0.5), (2, 0.25), (3, 0.75)):
        records[step] |= {"reward/mean": figure, "reward/std": 0.125}
    band, line = drawn(records)["Reward"]["data"]
    assert line["y"] == [0.5, None, 0.25, 0.75, None, None]
    assert line["mode"] == "lines+markers"  # for the first has no neighbour
    assert band["y"] == [0.625, 0.375, None, 0.375, 0.875, 0.625, 0.125, None]
    assert band["x"] == [1, 1, None, 3, 4, 4, 3, None]  # steps as people count them
    assert band["legendgroup"] == line["legendgroup"]


def test_the_band_stays_within_the_rewards_that_there_were(made_up: Any) -> None:
    records = made_up.records(2)
    for record in records:
        record |= {"reward/mean": 0.875, "reward/std": 0.5, "reward/min": 0.0, "reward/max": 1.0}
    band, _ = drawn(records)["Reward"]["data"]
    assert band["y"] == [1.0, 1.0, 0.375, 0.375, None]


def test_what_a_reader_looks_for_comes_first(made_up: Any) -> None:
    records = made_up.records(3)
    for record in records:
        record |= {f"trainer/{name}": 0.5 for name in ("entropy", "grad_norm", "loss", "learning_rate")}
        record |= {"reward/format": 0.25}
    assert [chart.title for chart in learning(records)] == [
        *("Reward", "Accuracy", "Completion length", "Truncated completions, failed rewards", "Entropy"),
        *("Gradient norm", "Loss", "Learning rate", "Reward part: format"),
    ]


def test_a_reward_that_is_never_1_has_no_accuracy(made_up: Any) -> None:
    records = [record | {"accuracy/mean": 0.0} for record in made_up.records(3)]
    assert "Accuracy" not in drawn(records)


def test_each_axis_has_its_unit(made_up: Any) -> None:
    found = drawn(made_up.records(3))
    axes = {title: figure["layout"]["yaxis"] for title, figure in found.items()}
    assert axes["Accuracy"]["title"] == {"text": "share of trajectories"}
    assert axes["Weight push"]["title"] == {"text": "time (s)"}
    percent = {title for title, axis in axes.items() if axis.get("tickformat", "").endswith("%")}
    assert percent == {title for title, axis in axes.items() if axis["title"]["text"].startswith("share")}
    assert {title for title, axis in axes.items() if axis["rangemode"] != "tozero"} == {"Reward"}
    dashed = [trace["name"] for figure in found.values() for trace in figure["data"] if "dash" in trace.get("line", {})]
    assert dashed == ["bound"]
