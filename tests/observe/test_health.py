"""Each warning has figures that raise it, is said once, and again after it went away; sound figures raise none."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from asyncrl.control.ledger import Ledger
from asyncrl.control.messages import Train
from asyncrl.observe.health import LEAST_STEPS, TRUNCATED_STEPS, WINDOW_STEPS, Health, warnings
from asyncrl.observe.metrics import MetricsWriter
from asyncrl.observe.trackers import TrackedRun, Trackers
from asyncrl.orchestrator.recorder import Recorder
from asyncrl.recipe.schema import TrackRecipe
from asyncrl.rollout.summary import GroupSummary
from asyncrl.trainer.backend import StepReport
from asyncrl.trainer.messages import TrainResult

SOUND: dict[str, Any] = {
    "offpolicy/logprob_gap": 0.01,
    "offpolicy/logprob_gap_age0": 0.01,
    "offpolicy/ess": 0.95,
    "offpolicy/clip_fraction": 0.02,
    "offpolicy/masked_fraction": 0.0,
    "staleness/max": 0,
    "staleness/updates_mean": 0.0,
    "trainer/forward_tokens": 900.0,
    "trainer/skipped_zero_advantage": 8.0,
    "trainer/prefix_trees": 1.0,
    "trainer/entropy": 0.4,
    "trainer/grad_norm": 1.0,
    "groups/trained": 16,
    "groups/filtered": 4,
    "rewards/failed_share": 0.0,
    "completion/truncated_share": 0.3,
    "generators/serving": 2,
    "generators/wanted": 2,
}
OFF: dict[str, dict[str, Any]] = {
    "offpolicy/logprob_gap_age0 is 0.100": {"offpolicy/logprob_gap_age0": 0.1, "staleness/updates_mean": 3.0},
    "offpolicy/logprob_gap is 0.700": {
        "offpolicy/logprob_gap": 0.7,
        "offpolicy/logprob_gap_age0": None,
        "staleness/updates_mean": 1.0,
    },
    "offpolicy/ess is 0.10": {"offpolicy/ess": 0.1},
    "offpolicy/clip_fraction is 0.70": {
        "offpolicy/clip_fraction": 0.7,
        "offpolicy/logprob_gap": 0.3,
        "staleness/max": 2,
    },
    "offpolicy/masked_fraction is 0.60": {"offpolicy/masked_fraction": 0.6},
    "no trajectory of the step has a gradient": {"trainer/forward_tokens": 0.0, "trainer/grad_norm": 0.0},
    "every trajectory passes the model alone": {"trainer/prefix_trees": 0.0},
    "95 % of the groups": {"groups/filtered": 304, "groups/trained": 32},
    "27 % of the rewards failed lately": {"rewards/failed_share": 0.27},
    "trainer/entropy is 0.0010": {"trainer/entropy": 0.001},
    "1 of 2 generators serve": {"generators/serving": 1},
    "trainer/grad_norm is 11": {"trainer/grad_norm": 11.0},
}


@pytest.mark.parametrize("words", OFF)
def test_a_warning_is_said_once_and_again_after_it_went_away(words: str) -> None:
    health = Health()
    for _ in range(LEAST_STEPS):
        assert health.check(SOUND) == []
    off = {**SOUND, **OFF[words]}
    (sentence,) = health.check(off)
    assert words in sentence
    assert health.check(off) == []
    assert len(health.active) == 1
    # Counts of groups only grow: many trained ones end the filtered one's warning.
    sound = {**SOUND, "groups/trained": 4000, "groups/filtered": off["groups/filtered"]}
    for _ in range(WINDOW_STEPS):
        assert health.check(sound) == []
    assert health.active == {}
    again = {**sound, **OFF[words]}
    if "groups/filtered" in OFF[words]:
        again["groups/filtered"] = 400_000
    assert len(health.check(again)) == 1


def test_truncated_completions_warn_once_they_last() -> None:
    """A model that learns to stop within ten steps needs no warning."""
    health = Health()
    cut_off = {**SOUND, "completion/truncated_share": 0.9}
    for _ in range(TRUNCATED_STEPS - 1):
        assert health.check(cut_off) == []
    (sentence,) = health.check(cut_off)
    assert "completion/truncated_share is 0.90" in sentence
    assert health.check(SOUND) == []
    assert health.active == {}


def test_two_at_once_are_two_sentences_and_only_the_new_one_is_said() -> None:
    health = Health()
    assert len(health.check({**SOUND, "offpolicy/ess": 0.1})) == 1
    (sentence,) = health.check({**SOUND, "offpolicy/ess": 0.1, "trainer/entropy": 0.0})
    assert "entropy" in sentence
    assert len(health.active) == 2


@pytest.mark.parametrize(
    "why",
    [{"staleness/updates_mean": 1.0}, {"replay/share": 0.1}, {"offpolicy/logprob_gap_age0": 0.0}],
    ids=["older tokens, later updates", "replayed", "its own tokens agree"],
)
def test_a_gap_is_no_fault_when_other_weights_sampled(why: dict[str, Any]) -> None:
    assert warnings({**SOUND, "offpolicy/logprob_gap": 0.3, "offpolicy/logprob_gap_age0": None, **why}) == []


def test_rounding_that_a_narrow_bound_cuts_is_no_fault() -> None:
    assert warnings({**SOUND, "offpolicy/clip_fraction": 0.6}) == []


def test_failed_rewards_warn_from_five_percent_at_a_step_or_in_the_mean_of_the_last() -> None:
    few, many = ({**SOUND, "rewards/failed_share": share} for share in (0.04, 0.07))
    assert warnings(few, [few, few]) == []
    assert len(warnings(few, [few, many])) == 1
    assert len(warnings({**SOUND, "rewards/failed_share": 0.05})) == 1


def test_a_spike_needs_a_median_of_steps_with_a_gradient() -> None:
    spike = {**SOUND, "trainer/grad_norm": 1e6}
    without = {**SOUND, "trainer/grad_norm": 0.0}
    assert warnings(spike, [SOUND] * (LEAST_STEPS - 1)) == []
    assert warnings(spike, [without] * LEAST_STEPS) == []
    assert len(warnings(spike, [SOUND] * LEAST_STEPS)) == 1


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, -math.inf])
def test_figures_that_a_step_does_not_have_say_nothing(nothing: float | None) -> None:
    assert warnings(dict.fromkeys(SOUND, nothing)) == []
    assert warnings({}) == []


def test_a_run_that_learns_raises_none(made_up: ModuleType) -> None:
    health = Health()
    assert [sentence for record in made_up.records() for sentence in health.check(record)] == []


def test_a_run_on_answers_has_epochs_and_no_rewards_and_may_be_certain(tmp_path: Path) -> None:
    recorder = _recorder(tmp_path, num_answered=8)
    record = _step(recorder, 0, {"trainer/entropy": 0.0001, "trainer/grad_norm": 1.0})
    assert record["data/epoch"] == 1 / 8
    assert (record["reward/mean"], record["accuracy/mean"], record["rewards/failed_share"]) == (None, None, None)
    assert recorder.warnings == []


def test_zeros_that_nobody_gave_are_no_rewards(tmp_path: Path) -> None:
    record = _step(_recorder(tmp_path, taught_alone=True), 0, SOUND)
    assert (record["reward/mean"], record["reward/std"], record["accuracy/mean"]) == (None, None, None)
    assert record["rewards/failed_share"] is None  # no group was asked for: `known` ones alone
    assert "data/epoch" not in record


def _recorder(folder: Path, num_answered: int | None = None, *, taught_alone: bool = False) -> Recorder:
    track = TrackRecipe(wandb="off", tensorboard=False)
    trackers = Trackers(TrackedRun.of(folder, track.project, {}), track, 1, folder)
    writer = MetricsWriter(folder / "metrics.jsonl")
    recorder = Recorder(folder, writer, trackers, num_answered, taught_alone=taught_alone)
    recorder.begin()
    return recorder


def _ledger(step: int) -> Ledger:
    states = dict.fromkeys(("running", "ready", "leased", "filtered", "failed", "stale", "requeued"), 0)
    return Ledger(drawn=step + 1, trained=step + 1, filtered_reasons={}, failed_reasons={}, **states)


def _step(recorder: Recorder, step: int, metrics: dict[str, float | None], cut_off: int = 1) -> dict[str, Any]:
    extras = [{"format": 1.0}, {"format": 0.0}]
    group = GroupSummary(step, 0, "finished", num_tokens=8, rewards=[1.0, 0.0], extras=extras, num_truncated=cut_off)
    recorder.known(group)
    ours = {name: value for name, value in metrics.items() if name.startswith(("offpolicy/", "trainer/"))}
    report = StepReport({**ours, "offpolicy/kl": 0.0}, tokens_trained=8, tokens_forward=8, staleness=(6, 2))
    recorder.trained(Train(step, ((step, 0),), 0), TrainResult(report, 1.0, 0.0, 0.0, []))
    return recorder.step(step, _ledger(step), [], 2, 2)


def test_the_recorder_logs_a_new_warning_and_counts_those_that_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = _recorder(tmp_path)
    with caplog.at_level(logging.WARNING, "asyncrl"):
        for step, ess in enumerate((0.9, 0.1, 0.1, 0.9, 0.1)):
            _step(recorder, step, {**SOUND, "offpolicy/ess": ess})
    assert [m.split(":")[0] for m in caplog.messages] == ["step 2", "step 5"]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["health/warnings"] for record in records] == [0, 1, 1, 0, 1]
    assert records[0]["staleness/histogram"] == [6, 2]
    assert records[0]["reward/format"] == 0.5
    assert records[0]["completion/truncated_share"] == 0.5


def test_a_resume_goes_on_with_what_was_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning that takes several steps is not told off by a resume, and one that held is not said again."""
    _recorder(tmp_path)  # of a run that ended before its first step
    first = _recorder(tmp_path)
    for step in range(6):
        _step(first, step, {**SOUND, "offpolicy/ess": 0.1}, cut_off=2)
    caplog.clear()
    resumed = _recorder(tmp_path)
    assert [warning.partition(" ")[0] for warning in resumed.warnings] == ["offpolicy/ess"]
    with caplog.at_level(logging.WARNING, "asyncrl"):
        for step in range(6, 12):
            _step(resumed, step, {**SOUND, "offpolicy/ess": 0.1}, cut_off=2)
    assert ["cut off" in message for message in caplog.messages] == [True]
    assert len(resumed.finish(_ledger(11), worst_case=0)["warnings"]) == 2


def test_the_first_failure_of_each_kind_is_logged_and_all_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a group was trained, or had no reward at all."""
    recorder = _recorder(tmp_path)
    bad = "ValueError: invalid literal: 'five' (mine.py:3)"
    with caplog.at_level(logging.WARNING, "asyncrl"):
        for outcome, errors in (("finished", [bad]), ("failed", [bad.replace("five", "six"), "timed out after 30 s"])):
            rewards = [1.0, 0.0, *[None] * len(errors)] if outcome == "finished" else [None, None]
            recorder.group(GroupSummary(7, 0, outcome, rewards=rewards, errors=errors, num_truncated=1))
        record = _step(recorder, 0, SOUND)
        later = _step(recorder, 1, SOUND)
    said = [f"a reward failed, and its trajectory is not trained: {text}" for text in (bad, "timed out after 30 s")]
    assert caplog.messages[:2] == said
    assert [m.split(" %")[0] for m in caplog.messages[2:]] == ["step 1: 60"]
    assert (record["rewards/failed"], record["rewards/failed_share"]) == (3, 0.6)
    assert (later["rewards/failed"], later["rewards/failed_share"]) == (3, None)
    summary = recorder.finish(_ledger(1), worst_case=0)
    assert summary["reward_failures"] == 3
    assert summary["reward_failure_reasons"] == {bad: 2, "timed out after 30 s": 1}


def test_what_a_teacher_has_not_said_is_logged_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, also where there is no reward and it fails with that; a resume goes on counting."""
    recorder, away = _recorder(tmp_path), "the teacher at http://x answers HTTP 503, for 9 s (timeout_s)"
    beside = GroupSummary(0, 0, "finished", num_tokens=8, rewards=[1.0, 0.0], taught=[None, away])
    alone = GroupSummary(1, 0, "failed", "reward", rewards=[None] * 2, errors=[away] * 2, taught=[away] * 2)
    with caplog.at_level(logging.WARNING, "asyncrl"):
        for summary in (beside, alone):
            recorder.group(summary)
    assert caplog.messages == [f"a trajectory is not taught: {away} (distil/failed counts them)"]
    assert _step(recorder, 0, SOUND)["distil/failed"] == 3
    assert recorder.finish(_ledger(0), worst_case=0)["teacher_failure_reasons"] == {away: 3}
    again = _recorder(tmp_path)
    again.group(beside)
    assert _step(again, 1, SOUND)["distil/failed"] == 4
