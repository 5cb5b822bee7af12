"""Curves of many steps, thinned, and of many ages."""

from __future__ import annotations

from typing import Any

import pytest

from asyncrl.observe.charts import svg
from asyncrl.observe.curves import charts, thin


def test_ages_are_summed_over_thinned_steps_and_the_oldest_drawn_together(made_up: Any) -> None:
    records = [{"step": step, "staleness/histogram": [4 - step] + [2] * (8 * step)} for step in range(4)]
    assert [r["staleness/histogram"] for r in thin(records, 2)] == [[7] + [2] * 8, [3] + [4] * 16 + [2] * 8]
    records = made_up.records(4)
    records[3]["staleness/histogram"] = [6] + [1] * 9 + [0, 5]
    drawn = "".join(svg(chart) for chart in charts(records))
    assert "step 3\nage 0: 30 %\nage 1: 5 %\nage 2: 5 %\nage 3: 5 %\nage 4: 5 %\nage 5 to 11: 50 %" in drawn


def test_a_long_run_is_thinned_to_means_and_its_largest_age_stays(made_up: Any) -> None:
    records = made_up.records(10)
    records[3]["staleness/max"] = 9
    thinned = thin(records, 3)
    assert [r["step"] for r in thinned] == [0, 4, 8]
    assert [r["staleness/max"] for r in thinned] == [9, 2, 2]
    assert thinned[2]["reward/mean"] == (records[8]["reward/mean"] + records[9]["reward/mean"]) / 2


@pytest.mark.parametrize("figure", [5e-324, 1.7e308, -1.7e308, float("inf"), float("nan")])
def test_figures_at_the_ends_of_what_a_float_holds_are_drawn(made_up: Any, figure: float) -> None:
    records = made_up.records(3)
    for step, key in enumerate(("completion/truncated_share", "trainer/grad_norm", "reward/std")):
        records[step][key] = figure
    assert all("<svg" in svg(chart) or "no figures yet" in svg(chart) for chart in charts(records))


def test_figures_that_are_missing_leave_gaps(made_up: Any) -> None:
    records = [{"step": step} for step in range(3)]
    assert all("no figures yet" in svg(chart) for chart in charts(records))
    records[1]["reward/mean"] = 0.5
    assert svg(charts(records)[0]).count("<circle") == 1
