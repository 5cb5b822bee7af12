"""Real TensorBoard files and a real offline wandb run, and a tracker that breaks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asyncrl.observe.trackers import Trackers
from asyncrl.recipe.schema import TrackRecipe


def test_tensorboard_holds_the_numbers(tmp_path: Path) -> None:
    trackers = Trackers(tmp_path, TrackRecipe(wandb="off"), {}, "run")
    for step in range(3):
        trackers.log(step, {"reward/mean": step / 2, "offpolicy/ess": None, "note": "x"})
    trackers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert events.Tags()["scalars"] == ["reward/mean"]


def test_wandb_offline_needs_no_key_and_keeps_its_run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    ids = []
    for _ in range(2):
        trackers = Trackers(tmp_path, TrackRecipe(tensorboard=False), {"a": 1}, "run")
        trackers.log(0, {"reward/mean": 0.5})
        trackers.close()
        ids.append((tmp_path / "wandb_id").read_text())
    assert ids[0] == ids[1]
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_a_tracker_that_breaks_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def log(self, step: int, scalars: dict[str, float]) -> None:
            raise OSError("disk full")

        def close(self) -> None:
            raise AssertionError("it was given up before")

    trackers = Trackers(tmp_path, TrackRecipe(wandb="off", tensorboard=False), {}, "run")
    trackers._trackers["broken"] = Broken()
    trackers.log(0, {"reward/mean": 1.0})
    trackers.close()
    assert "broken no longer takes metrics" in caplog.text
