"""`max_epochs` as a number of steps: exact, said, and the same after a resume."""

from __future__ import annotations

import json
import logging
import math
from argparse import Namespace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from asyncrl.cli import running
from asyncrl.data.epochs import in_steps
from asyncrl.errors import UserError
from asyncrl.recipe.load import dump, load
from asyncrl.recipe.schema import UNKNOWN_STEPS, Recipe

NUM_ROWS = 30


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{n}: ", "completion": "x"} for n in range(NUM_ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(**keys: Any) -> Recipe:
    usual = {"model": "random:tiny-llama", "data": {"path": "rows.jsonl"}, "groups_per_step": 4}
    return Recipe.model_validate({**usual, "rollout": {"engine": "data"}, **keys})


@pytest.mark.parametrize(
    ("epochs", "per_step", "steps"),
    [(1, 4, 8), (2, 4, 15), (2.0, 30, 2), (0.1, 1, 3), (0.1, 3, 1), (1e-6, 4, 1), (3, 7, 13), (2.5, 1, 75)],
)
def test_epochs_are_steps_in_exact_numbers(
    folder: Path, caplog: pytest.LogCaptureFixture, epochs: float, per_step: int, steps: int
) -> None:
    assert steps == math.ceil(Fraction(str(epochs)) * NUM_ROWS / per_step)
    before = recipe(max_epochs=float(epochs), groups_per_step=per_step)
    assert before.max_steps == UNKNOWN_STEPS
    with caplog.at_level(logging.INFO):
        after = in_steps(before, folder)
    assert (after.max_steps, after.max_epochs) == (steps, epochs)
    assert f"max_steps is {steps}: max_epochs {epochs:g} of 30 rows, {per_step} a step" in caplog.text


def test_without_epochs_no_row_is_read(tmp_path: Path) -> None:
    r = recipe(max_steps=3, data={"path": "nowhere.jsonl"})
    assert in_steps(r, tmp_path) is r


def test_what_is_written_is_read_again_as_it_was(folder: Path) -> None:
    for r in (recipe(max_epochs=2.0), in_steps(recipe(max_epochs=2.0), folder)):
        (folder / "recipe.yaml").write_text(dump(r))
        assert load(folder / "recipe.yaml") == r
    assert "max_steps: null" in dump(recipe(max_epochs=2.0))


def test_both_must_agree(folder: Path) -> None:
    assert in_steps(recipe(max_epochs=2.0, max_steps=15), folder).max_steps == 15
    with pytest.raises(UserError, match=r"max_steps is 14, and max_epochs 2 of 30 rows, 4 a step, are 15 steps; set"):
        in_steps(recipe(max_epochs=2.0, max_steps=14), folder)


def test_a_resume_has_the_steps_of_the_run_and_more_epochs_are_more_steps(folder: Path) -> None:
    stored = in_steps(recipe(max_epochs=2.0), folder)
    (folder / "recipe.yaml").write_text(dump(stored))
    # The data is not counted again: it may have moved, or be another one that the user accepts.
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "a", "completion": "b"}\n' * 10)
    assert in_steps(load(folder / "recipe.yaml"), folder, stored) == stored
    longer = in_steps(load(folder / "recipe.yaml", ["max_epochs=4"]), folder, stored)
    assert (longer.max_steps, longer.max_epochs) == (40, 4)
    with pytest.raises(UserError, match="max_steps is 50, and max_epochs 2"):
        in_steps(load(folder / "recipe.yaml", ["max_steps=50"]), folder, stored)
    by_steps = in_steps(load(folder / "recipe.yaml", ["max_steps=50", "max_epochs=null"]), folder, stored)
    assert (by_steps.max_steps, by_steps.max_epochs) == (50, None)


def test_a_run_that_is_there_is_one_of_the_same_epochs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`asyncrl train --or-resume`, whose recipe does not know the steps yet."""
    (folder / "mine.yaml").write_text(dump(recipe(max_epochs=2.0, run_dir="run")))
    (folder / "run").mkdir()
    (folder / "run/recipe.yaml").write_text(dump(in_steps(recipe(max_epochs=2.0, run_dir="run"), folder)))
    resumed: list[Path] = []
    monkeypatch.setattr(running, "_go_on", lambda run_dir, *rest: resumed.append(run_dir) or 0)
    arguments = Namespace(recipe=folder / "mine.yaml", overrides=[], or_resume=True, dry_run=False)
    assert running.train(arguments) == 0
    assert resumed == [Path("run")]
    arguments.overrides = ["max_epochs=3"]
    with pytest.raises(UserError, match=r"holds a run of another recipe \(other max_epochs"):
        running.train(arguments)


def test_several_sources_have_no_epoch_together() -> None:
    with pytest.raises(ValueError, match="max_epochs is of one data source"):
        recipe(max_epochs=1.0, data=[{"path": "a.jsonl"}, {"path": "b.jsonl"}])
