"""Tasks, generators, waits and warnings as tables."""

from __future__ import annotations

import re
from typing import Any

from asyncrl.observe.health import Health
from asyncrl.report import standing


def cells(html: str) -> list[list[str]]:
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)[1:]]


def test_tasks_are_those_of_the_end_else_of_the_last_second_else_of_the_last_step(made_up: Any) -> None:
    records, status = made_up.records(3), made_up.status()
    summary = made_up.summary(records[-1])

    def trained(*sources: Any) -> str:
        return dict(row[:2] for row in cells(standing.ledger(*sources)))["trained"]

    assert trained(records, summary, status) == "320"
    assert trained(records, {}, status) == "112"
    assert trained(records, {}, {}) == "48"
    assert "No counts" in standing.ledger([], {}, {})
    assert "prompt_too_long: 3" in standing.ledger(records, summary, status)


def test_rows_that_were_never_drawn_are_shown_by_source_and_reason(made_up: Any) -> None:
    summary = made_up.summary({})
    whole = {"name": "sums", "rows": 9, "left_out": {}}
    cut = {"name": "<words>", "rows": 12, "left_out": {"duplicate": 2, "prompt_empty": 1}}
    shown = standing.ledger([], {**summary, "data": [whole, cut]}, {})
    assert ["&lt;words&gt;", "3 of 12", "duplicate: 2, prompt_empty: 1"] in cells(shown)
    skipping = {**summary, "ledger": {**summary["ledger"], "skipped": 7}}
    assert ["skipped", "7"] in [row[:2] for row in cells(standing.ledger([], skipping, {}))]
    assert "skipped" not in standing.ledger([], summary, {})
    assert "left out before" not in standing.ledger([], {**summary, "data": [whole]}, {})


def test_generators(made_up: Any) -> None:
    assert cells(standing.generators(made_up.status())) == [
        ["generator-0", "serving", "6", "9", "431", "61 %", "3 %", "36 %"],
        ["generator-1", "starting", "-", "-", "-", "-", "-", "-"],
    ]
    assert standing.generators({}) == ""
    many = standing.generators({"generators": [{"name": f"<{n}>", "state": "starting"} for n in range(100)]})
    assert len(cells(many)) == 64
    assert "and 36 more" in many
    assert "<0>" not in many


def test_warnings_that_hold_stand_out_from_those_that_held(made_up: Any) -> None:
    health, records = Health(), made_up.records(6)
    for step, record in enumerate(records):
        off = {"offpolicy/ess": 0.1 + 0.01 * step} if step in (1, 2, 4) else {}
        off |= {"trainer/entropy": 0.001} if step == 5 else {}
        health.check(record | off)
    html = standing.warnings(health)
    assert re.findall(r'class="line warn">(.*?) is', html) == ["at step 6: trainer/entropy"]
    ((when, sentence),) = cells(standing.past(health))
    assert when == "at 3 of the steps 2 to 5"
    assert sentence.startswith("offpolicy/ess is 0.14")
    for step in (6, 7):
        health.check(made_up.records(1)[0] | {"step": step, "trainer/entropy": 0.001})
    assert "at the steps 6 to 8: trainer/entropy" in standing.warnings(health)
    assert standing.warnings(Health()) == standing.past(Health()) == ""


def test_what_the_driver_logged_is_shown_but_not_what_a_step_showed() -> None:
    log = [
        [0.0, "generator-0 is lost (<b>); it is started again, and its tasks too"],
        [1.0, "step 7: off"],
        [60.0, "x"],
    ]
    assert cells(standing.logged({"log": log})) == [
        ["1970-01-01 00:01:00", "x"],
        ["1970-01-01 00:00:00", "generator-0 is lost (&lt;b&gt;); it is started again, and its tasks too"],
    ]
    assert standing.logged({}) == ""


def test_waits(made_up: Any) -> None:
    assert "<li>trainer: step 7, for 4 s of 600 s</li>" in standing.waits(made_up.status())
    assert "&lt;b&gt;" in standing.waits({"waiting": ["<b>"]})
    assert "Nothing is waited for" in standing.waits({})
