"""From where `asyncrl replay --verify` can train a run again, whatever its journal has forgotten by then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asyncrl.buffer import log
from asyncrl.buffer.records import GROUP, GROUPS_STREAM
from asyncrl.control.messages import Train
from asyncrl.errors import UserError
from asyncrl.orchestrator import replay
from asyncrl.recipe.load import load
from asyncrl.rollout.trajectory import Group, encode
from asyncrl.storage import atomic


class Learner:
    """Says what it is told to do."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def restore(self, state: Any) -> None:
        self.done.append(state)

    def step(self, groups: list[Group], step: int, min_version: int) -> None:
        self.done.append((step, [group.task for group in groups]))

    def state(self) -> str:
        return "ours"


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> Learner:
    learner = Learner()
    monkeypatch.setattr(replay, "_trainer", lambda recipe, run_dir: learner)
    monkeypatch.setattr(replay.files, "read", lambda folder: folder.parent.name)
    monkeypatch.setattr(replay, "_compare", lambda version, ours, theirs: learner.done.append(("compared", theirs)))
    return learner


def run_of(folder: Path, checkpoints: list[int], steps: range) -> list[Train]:
    """A run directory with these checkpoints and the batches of these steps, a group each."""
    (folder / "recipe.yaml").write_text("model: a/b\ndata: {path: x}\nreward: m:f\nmax_steps: 9\n")
    for version in checkpoints:
        atomic.commit(atomic.begin(folder / "checkpoints", version))
    writer = log.JournalWriter(folder / "journal", GROUPS_STREAM)
    for step in steps:
        writer.append(GROUP, encode(Group(step, 0, step, ())))
    writer.close()
    return [Train(step, ((step, 0),), 0) for step in steps]


def test_from_the_initial_model(tmp_path: Path, learner: Learner) -> None:
    batches = run_of(tmp_path, [2, 3], range(4))
    assert list(replay._train(tmp_path, load(tmp_path / "recipe.yaml"), batches)) == [2, 3]
    compared = [("compared", "step_000002"), (2, [2]), ("compared", "step_000003")]
    assert learner.done == [(0, [0]), (1, [1]), *compared]


def test_from_the_oldest_checkpoint_that_is_left(tmp_path: Path, learner: Learner) -> None:
    """The journal was pruned at checkpoint 2, which newer ones have replaced."""
    batches = run_of(tmp_path, [4, 6], range(2, 7))
    assert list(replay._train(tmp_path, load(tmp_path / "recipe.yaml"), batches)) == [6]
    assert learner.done == ["step_000004", (4, [4]), (5, [5]), ("compared", "step_000006")]


@pytest.mark.parametrize("kind", ["recipe", "training"])
def test_from_where_a_resume_trained_otherwise(
    tmp_path: Path, learner: Learner, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Resumed at step 5 from checkpoint 4; the recipe that there is now is not that of the steps before."""
    batches = run_of(tmp_path, [2, 4, 6], range(7))
    change = {"step": 5, "trained_from": 4, "kind": kind, "key": "trainer.learning_rate", "what": "another one"}
    (tmp_path / "fingerprint.json").write_text(json.dumps({"parts": {}, "draws": {}, "changes": [change]}))
    assert list(replay._train(tmp_path, load(tmp_path / "recipe.yaml"), batches)) == [6]
    assert learner.done == ["step_000004", (4, [4]), (5, [5]), ("compared", "step_000006")]
    assert "a resume changed how step 5 and later ones are trained: those before step 5" in caplog.text


@pytest.mark.parametrize("key", ["trainer.learning_rate", "trainer.ranks"])
def test_not_from_a_checkpoint_of_before_though_the_next_is_gone(tmp_path: Path, learner: Learner, key: str) -> None:
    """A resume at step 4 went from a checkpoint that newer ones have replaced; an older one was kept. Several ranks sum
    in another order, so their steps are not repeated either."""
    batches = run_of(tmp_path, [2, 6, 8], range(9))
    change = {"step": 4, "trained_from": 4, "kind": "recipe", "key": key, "what": "another one"}
    (tmp_path / "fingerprint.json").write_text(json.dumps({"parts": {}, "draws": {}, "changes": [change]}))
    assert list(replay._train(tmp_path, load(tmp_path / "recipe.yaml"), batches)) == [8]
    assert learner.done[0] == "step_000006"


@pytest.mark.parametrize(("checkpoints", "steps"), [([4, 6], range(6, 7)), ([], range(3)), ([2], range(2, 5))])
def test_what_it_takes_is_said(tmp_path: Path, learner: Learner, checkpoints: list[int], steps: range) -> None:
    batches = run_of(tmp_path, checkpoints, steps)
    with pytest.raises(UserError, match=f"batches from step {steps[0] + 1} on, and no checkpoint after that.*keep=all"):
        list(replay._train(tmp_path, load(tmp_path / "recipe.yaml"), batches))
    assert learner.done == []
