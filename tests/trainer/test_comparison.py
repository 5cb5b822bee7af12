"""An export that is not the model is found, by name or by what it computes; what it changes on purpose is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES, make_model
from safetensors.torch import load_file, save_file
from test_learner import groups, learner, recipe

from asyncrl import memory
from asyncrl.errors import RunFailed, UserError
from asyncrl.trainer import comparison
from asyncrl.trainer.comparison import require_same, require_unchanged
from asyncrl.trainer.export import names_of, write_model
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.loading import from_folder

TOKENS = list(range(5, 45))
Weights = dict[str, torch.Tensor]


def exported(source: Path, folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model = from_folder(str(source))
    write_model(model, {n: p.detach() for n, p in model.named_parameters()}, names_of(model), folder, dtype)
    return model


def change(folder: Path, by: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    save_file(by(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_export_is_what_it_came_from(family: str, dtype: torch.dtype, tmp_path: Path, caplog: Any) -> None:
    source = make_model(family, tmp_path / "source")
    require_unchanged(exported(source, tmp_path / "out", dtype), tmp_path / "out", TOKENS, dtype)
    said = [record.message for record in caplog.records if record.name.startswith("asyncrl")]
    number = len(load_file(source / "model.safetensors")) - (family == "glm4_moe")
    rounded = (
        f"exported models hold {number} tensors as BF16 that are F32 in {source} (weights.dtype; float32 keeps them so)"
    )
    assert said == ([rounded] if dtype == torch.bfloat16 else [])


def test_the_hub_form_of_gpt2_is_what_it_came_from(tmp_path: Path, caplog: Any) -> None:
    source = make_model("gpt2", tmp_path / "source")
    change(
        source, lambda w: {n.removeprefix("transformer."): t for n, t in w.items()} | {"h.0.attn.bias": torch.ones(4)}
    )
    require_unchanged(exported(source, tmp_path / "out"), tmp_path / "out", TOKENS, torch.float32)
    assert f"lack what the model's class does not use of {source}: h.0.attn.bias\n" in caplog.text


def test_a_changed_number_is_named_in_a_part_that_the_text_does_not_reach(tmp_path: Path) -> None:
    source = make_model("llama", tmp_path / "source")
    model = exported(source, tmp_path / "out")
    name = "model.embed_tokens.weight"
    change(tmp_path / "out", lambda w: {**w, name: w[name].index_fill(0, torch.tensor([250]), 1.0)})
    with pytest.raises(UserError, match=f"other numbers are in {name}; open an issue"):
        require_unchanged(model, tmp_path / "out", TOKENS, torch.float32)


def test_a_changed_configuration_is_found_by_what_it_computes(tmp_path: Path) -> None:
    source = make_model("llama", tmp_path / "source")
    model = exported(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(UserError, match=r"would compute something else: its log-probs of a fixed text are [\d.]+ nats"):
        require_unchanged(model, tmp_path / "out", TOKENS, torch.float32)


def test_without_room_for_a_second_model_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    source = make_model("llama", tmp_path / "source")
    model = exported(source, tmp_path / "out")
    monkeypatch.setattr(comparison, "from_folder", lambda path: pytest.fail("loaded"))
    monkeypatch.setattr(memory, "available", lambda: 2**10)
    require_unchanged(model, tmp_path / "out", TOKENS, torch.float32)
    assert "is not loaded again to be compared" in caplog.text


@pytest.fixture(params=[{}, {"lora": {"rank": 4, "targets": ["embed_tokens", "o_proj"]}}], ids=["whole", "adapters"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> Learner:
    source = make_model("llama_tied", tmp_path / "source")
    trainer = {"precision": "fp32", "learning_rate": 1e-2, **request.param}
    ours = learner(source, recipe(trainer=trainer, weights={"dtype": "float32"}))
    ours.step(groups(1, [[1.0, 0.0], [0.0, 1.0]]), 0, 0)
    ours.export(ours.state(), tmp_path / "out", torch.float32)
    return ours


def compare(ours: Learner, folder: Path) -> None:
    weights = ours.whole(ours.state())
    require_same(ours.model, weights, folder, ours.score(TOKENS), TOKENS, torch.float32, torch.float32)


def test_a_trained_model_is_the_same_when_loaded_again(trained: Learner, tmp_path: Path) -> None:
    compare(trained, tmp_path / "out")


def test_the_initial_model_is_not_the_trained_one(trained: Learner, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "source" / "model.safetensors", tmp_path / "out" / "model.safetensors")
    with pytest.raises(
        RunFailed, match=r"is not the trainer's model: .* nats a token off, and other numbers are in model"
    ):
        compare(trained, tmp_path / "out")


def test_a_step_more_is_another_model(trained: Learner, tmp_path: Path) -> None:
    trained.step(groups(2, [[1.0, 0.0], [0.0, 1.0]], version=1), 1, 1)
    with pytest.raises(RunFailed, match="nats a token off, and other numbers are in"):
        compare(trained, tmp_path / "out")


def test_what_rounding_explains_grows_with_the_log_probs_of_a_model_that_has_lost_its_way() -> None:
    model = SimpleNamespace(device=torch.device("cpu"))
    usual, lost = torch.full((9,), -4.0), torch.full((9,), -20.0)
    assert comparison._tolerance(model, torch.bfloat16, usual) == 0.1
    assert comparison._tolerance(model, torch.bfloat16, lost) == pytest.approx(0.4)
    assert comparison._tolerance(model, torch.float32, usual) == 1e-3
