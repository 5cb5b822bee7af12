"""What Python gives in the place of a recipe's texts: functions, paths, NumPy's numbers, nested keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from asyncrl.api import calls, objects
from asyncrl.api.callbacks import Callback, Told
from asyncrl.errors import UserError
from asyncrl.plugins import load_object

ROOT = Path(__file__).resolve().parents[2]


def right(completion, **row):
    return 1.0


def test_what_can_be_imported_goes_by_its_name() -> None:
    assert objects.spec_of(pytest.raises) == f"{pytest.raises.__module__}:raises"


@pytest.mark.parametrize(
    "code", [lambda completion, **row: 2.0, type("Judge", (), {"score": lambda self, _: 2.0})().score]
)
def test_what_cannot_is_pickled_into_a_file(code: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = objects.spec_of(code)
    loaded = load_object(spec, tmp_path, "reward")
    assert spec.startswith("./runs/objects/")
    assert loaded("x") == 2.0


def test_a_function_of_a_script_is_found_by_another_process(tmp_path: Path) -> None:
    script = "from asyncrl.api.objects import spec_of\nword = 'five'\ndef judge(completion, **row):\n"
    script += "    return float(word in completion)\nprint(spec_of(judge))"
    command = [sys.executable, "-c", script]
    spec = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    judge = load_object(spec, tmp_path, "reward")
    assert (judge("five"), judge("six")) == (1.0, 0.0)


def test_paths_and_numbers_are_what_a_recipe_takes(tmp_path: Path) -> None:
    keys = {"run_dir": tmp_path / "run", "max_steps": np.int64(3), "trainer": {"learning_rate": np.float64(1e-3)}}
    recipe = calls.recipe_of(ROOT / "recipes/tiny.yaml", keys)
    assert (recipe.run_dir, recipe.max_steps, recipe.trainer.learning_rate) == (str(tmp_path / "run"), 3, 1e-3)
    assert recipe.trainer.precision == "fp32", "nested keys leave the others as they are"
    with pytest.raises(UserError, match="a recipe takes numbers, texts"):
        calls.recipe_of(ROOT / "recipes/tiny.yaml", {"max_steps": {1, 2}, "seed": object()})


def test_data_and_evaluations_take_the_place_of_what_is_there() -> None:
    keys = {"eval": {"data": {"path": "reasoning_gym:gcd"}}}
    recipe = calls.recipe_of(ROOT / "recipes/arithmetic.yaml", keys)
    assert recipe.eval[0].name == "gcd"
    assert recipe.eval[0].max_tasks is None


def test_an_evaluation_of_nothing_is_refused_as_the_command_does(tmp_path: Path) -> None:
    keys = {"model": "random:tiny-llama", "data": {"path": "reasoning_gym:gcd"}, "reward": "m:f", "max_steps": 1}
    with pytest.raises(UserError, match="the recipe has no evaluation; add"):
        calls.evaluate("random:tiny-llama", keys, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_callback_that_fails_is_over_and_no_other_is() -> None:
    class Fails(Callback):
        ended = False

        def on_step_end(self, run, record):
            raise ValueError("boom")

        def on_train_end(self, run):
            self.ended = True

    fails, told = Fails(), Told(Fails(), None)
    with pytest.raises(ValueError, match="boom"):
        told.log(0, {"reward/mean": 1.0})
    told.close()
    assert not fails.ended
    hooks = calls._hooks([Fails(), Callback()])
    assert list(hooks.trackers) == ["callback Fails 1", "callback Callback 2"]
    with pytest.raises(TypeError, match="must be Callback objects, not int"):
        calls._hooks([3])
