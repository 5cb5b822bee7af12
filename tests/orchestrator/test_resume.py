"""A change given to `resume` is kept once the run has begun with it; until then the run directory is as it was."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncrl.buffer.records import ControlLog
from asyncrl.control.controller import Controller
from asyncrl.errors import RunFailed
from asyncrl.orchestrator import run
from asyncrl.orchestrator.fingerprint import shapes_training
from asyncrl.recipe.load import control_settings, dump, load
from asyncrl.recipe.stored import load_stored

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that broke off at its beginning, and nothing to start."""
    monkeypatch.chdir(ROOT)
    recipe = load(ROOT / "recipes/tiny.yaml", ["rollout.engine=simulated", "algorithm.loss=reinforce"])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    (tmp_path / "summary.json").write_text("{}")
    ControlLog(tmp_path / "journal", Controller(control_settings(recipe)).state()).close()
    same = SimpleNamespace(draws=(), write=lambda _: None)
    monkeypatch.setattr(run, "_tasks", lambda *_: (SimpleNamespace(), [], None))
    monkeypatch.setattr(run.fingerprint, "compared", lambda *_: same)
    monkeypatch.setattr(run, "with_ray", lambda *_: nullcontext())
    # It would start a Ray to ask.
    monkeypatch.setattr(run.ray_cluster, "base_dir_of_actors", lambda base_dir: base_dir)
    return tmp_path


def test_a_change_that_no_actor_starts_with_is_not_kept(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any) -> int:
        raise RunFailed("the engine does not start")

    monkeypatch.setattr(run, "_run", fails)
    before = (run_dir / "recipe.yaml").read_text()
    with pytest.raises(RunFailed):
        run.resume(run_dir, *load_stored(run_dir, ["trainer.learning_rate=0.5"], trust=False))
    assert (run_dir / "recipe.yaml").read_text() == before
    assert (run_dir / "summary.json").exists()


def test_another_end_of_a_schedule_is_said_where_the_rate_jumps(caplog: pytest.LogCaptureFixture) -> None:
    keys = ["trainer.learning_rate=0.5", "trainer.schedule=linear", "max_steps=10"]
    stored = load(ROOT / "recipes/tiny.yaml", keys)
    longer = load(ROOT / "recipes/tiny.yaml", [*keys, "max_steps=20"])
    found = run._bent(stored, longer, 10)
    assert "step 11 has the learning rate 0.25, and would have had 0 with max_steps 10" in caplog.text
    # As another training: nothing is trained again by it without a word, and no older checkpoint is verified by it.
    assert [shapes_training(key) for key in found] == [True]
    assert not run._bent(stored, longer, 0)


def test_a_change_that_works_is_the_recipe_from_then_on(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def works(*arguments: Any) -> int:
        begun = arguments[-1]
        begun()
        return 0

    monkeypatch.setattr(run, "_run", works)
    assert run.resume(run_dir, *load_stored(run_dir, ["trainer.learning_rate=0.5"], trust=False)) == 0
    assert load(run_dir / "recipe.yaml", []).trainer.learning_rate == 0.5
    assert not (run_dir / "summary.json").exists()
    assert not list(run_dir.glob(".recipe*"))
