"""A run goes on with the model and the adapters that it was started with, or is refused before anything starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from asyncrl.buffer.records import ControlLog
from asyncrl.checkpoint import files
from asyncrl.cli import main
from asyncrl.control.controller import Controller
from asyncrl.errors import UserError
from asyncrl.orchestrator.same_model import fingerprint, record, require_same
from asyncrl.recipe.load import control_settings, dump, load
from asyncrl.recipe.schema import Recipe
from asyncrl.trainer.model import trained_shapes

TINY = Path(__file__).resolve().parents[2] / "recipes" / "tiny.yaml"


@pytest.fixture
def run_dir(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a run that broke off before its first step."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    Path("mine.py").write_text("def reward(completion, answer, **row):\n    return 1.0\n")
    shutil.copytree(tiny_model, "model")
    data = ["data.path=rows.jsonl", "data.options={}"]
    recipe = load(TINY, ["model=./model", "reward=./mine.py:reward", "track.wandb=off", *data])
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "recipe.yaml").write_text(dump(recipe))
    record(run_dir, "./model")
    ControlLog(run_dir / "journal", Controller(control_settings(recipe)).state()).close()
    return run_dir


def another_model(folder: Path) -> None:
    """Of the same names and shapes."""
    weights = load_file("model/model.safetensors")
    shutil.copytree("model", folder)
    changed = {name: tensor + 1 for name, tensor in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["trainer.lora.rank=4"], "trainer.lora.rank is 4, but the run was started with 0; leave it as it was"),
        (["trainer.lora.alpha=8"], "trainer.lora.alpha is 8.0, but the run was started with 32.0; leave it as it was"),
        (["model=./another"], "model ./another is not the one that the run was started with, ./model: its tensors"),
        (["model=random:tiny-llama"], "model random:tiny-llama is not the one that the run was started with, ./model"),
    ],
    ids=["adapters", "scale", "other weights", "random"],
)
def test_a_change_is_refused_before_anything_is_started_or_written(
    run_dir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: list[str], said: str
) -> None:
    another_model(Path("another"))
    monkeypatch.setattr("asyncrl.cluster.ray_cluster.start", lambda recipe: pytest.fail("Ray was started"))
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file() and p.name != ".lock"}
    assert main(["resume", str(run_dir), *change]) == 2
    assert said in capfd.readouterr().err
    assert {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_a_moved_model_is_the_same(run_dir: Path) -> None:
    shutil.move("model", "elsewhere")
    assert fingerprint("elsewhere") == json.loads((run_dir / "model.json").read_text())["fingerprint"]


def test_a_changed_configuration_is_another_model(run_dir: Path) -> None:
    before, config = fingerprint("model"), Path("model/config.json")
    config.write_text(config.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'))
    assert fingerprint("model") != before


def recipe_of(run_dir: Path, **changes: object) -> Recipe:
    return load(run_dir / "recipe.yaml", [f"{key}={value}" for key, value in changes.items()])


def test_the_checkpoint_is_compared_by_name_and_shape(run_dir: Path) -> None:
    """In a run from before there were fingerprints; also of one that several ranks wrote."""
    (run_dir / "model.json").unlink()
    recipe, checkpoint = recipe_of(run_dir), run_dir / "checkpoints" / "step_000001"
    trained = trained_shapes("./model", recipe)
    state = {f"model.{name}": torch.zeros(shape) for name, shape in trained.items()}
    name = "model.model.embed_tokens.weight"
    rows = state.pop(name)
    files.write({**state, f"{name}@0": rows[:100]}, checkpoint / "trainer", 0)
    files.write({f"{name}@100": rows[100:]}, checkpoint / "trainer", 1)
    require_same(run_dir, recipe, recipe, trained, checkpoint)
    wider = {name: (2, *shape[1:]) if "norm" in name else shape for name, shape in trained.items()}
    with pytest.raises(UserError, match=r"does not fit .*step_000001: of another shape are model.layers.0.input_layer"):
        require_same(run_dir, recipe, recipe, wider, checkpoint)
    more = {**trained, "extra.weight": (1,)}
    del more["model.norm.weight"]
    with pytest.raises(UserError, match=r"it lacks extra.weight; nothing takes model.norm.weight. Resume with"):
        require_same(run_dir, recipe, recipe, more, checkpoint)
    with pytest.raises(UserError, match=r"algorithm.advantage gae: .* has no critic"):
        require_same(run_dir, recipe_of(run_dir, **{"algorithm.advantage": "gae"}), recipe, trained, checkpoint)
