"""What is exported is the model: every name, every number, the files beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from families import FAMILIES, make_model
from safetensors.torch import load_file
from test_learner import groups, learner, recipe
from transformers import AutoModelForCausalLM

from asyncrl.errors import RunFailed
from asyncrl.trainer.export import names_of, write_model
from asyncrl.trainer.loading import from_folder


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_model_comes_out_as_it_went_in(family: str, tmp_path: Path) -> None:
    source = make_model(family, tmp_path / "source")
    ours = learner(source)
    ours.export(ours.state(), tmp_path / "out", torch.float32)
    came_in, went_out = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert came_in.keys() == went_out.keys()
    assert all(torch.equal(tensor, went_out[name]) for name, tensor in came_in.items())
    theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, exported(ids).logits)


def test_what_its_class_keeps_in_fp32_is_not_rounded(tmp_path: Path) -> None:
    source = make_model("glm4_moe", tmp_path / "source")
    ours = learner(source)
    ours.export(ours.state(), tmp_path / "out", torch.bfloat16)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    came_in, went_out = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert torch.equal(came_in[name], went_out[name])
    assert {str(t.dtype) for n, t in went_out.items() if n != name} == {"torch.bfloat16"}


def test_a_generation_config_is_copied_even_if_transformers_would_not_write_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_model, tmp_path / "source"))
    text = json.dumps({"eos_token_id": 2, "do_sample": False, "temperature": 0.6, "top_p": 0.95}, indent=4)
    (source / "generation_config.json").write_text(text)
    ours = learner(source)
    before = ours.model.generation_config
    ours.export(ours.state(), tmp_path / "out", torch.float32)
    assert (tmp_path / "out" / "generation_config.json").read_text() == text
    assert ours.model.generation_config is before


@pytest.mark.parametrize(
    ("change", "said"),
    [({"model.norm.weight": None}, "lack model.norm.weight"), ({"more": torch.ones(1)}, "hold more")],
)
def test_weights_of_other_names_are_an_error(
    tiny_model: Path, tmp_path: Path, change: dict[str, torch.Tensor | None], said: str
) -> None:
    model = from_folder(str(tiny_model))
    weights = {n: p.detach() for n, p in model.named_parameters()} | change
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    with pytest.raises(RunFailed, match=f"are not the model's: they {said}"):
        write_model(model, weights, names_of(model), tmp_path / "out", torch.float32)


def test_a_trained_one_with_a_saved_buffer_computes_what_the_trainer_does(tmp_path: Path) -> None:
    source = make_model("glm4_moe", tmp_path / "source")
    ours = learner(source, recipe(trainer={"precision": "fp32", "learning_rate": 1e-2}))
    tokens = list(range(5, 30))
    before = ours.score(tokens)
    ours.step(groups(1, [[1.0, 0.0], [0.0, 1.0]]), 0, 0)
    ours.export(ours.state(), tmp_path / "out", torch.float32)
    assert ours.score(tokens) != pytest.approx(before, abs=1e-2)
    assert learner(tmp_path / "out").score(tokens) == pytest.approx(ours.score(tokens), abs=1e-5)


def test_an_export_beside_a_step_does_not_ask_what_the_model_looks_like_meanwhile(
    tiny_model: Path, tmp_path: Path
) -> None:
    """FSDP2 puts whole tensors in the place of sharded ones, one after the other, while a layer computes."""
    ours = learner(tiny_model)
    state = {name: tensor.clone() for name, tensor in ours.state().items()}
    ours.model.lm_head.weight = torch.nn.Parameter(ours.model.lm_head.weight.detach().clone())
    ours.export(state, tmp_path / "out", torch.float32)
    assert learner(tmp_path / "out").score([5, 6, 7]) == pytest.approx(learner(tiny_model).score([5, 6, 7]), abs=1e-6)
