"""Adapters: what is trained, saved, sent and exported, and that it all describes one model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_model
from safetensors.torch import load_file, save_file
from test_learner import CPU, groups, learner, of, recipe
from transformers import AutoModelForCausalLM

from asyncrl.errors import UserError
from asyncrl.headers import read_headers
from asyncrl.models import TINY_MODULES
from asyncrl.recipe.trainer import LoraRecipe
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.loading import outline
from asyncrl.trainer.lora import adapters, inject, require_in_folder
from asyncrl.trainer.model import trained_shapes
from asyncrl.weights.lora import Adapters, merge
from asyncrl.weights.shards import assemble
from asyncrl.weights.staging import StagedWeights

REWARDS = [[1.0, 0.0, 0.5], [0.0, 0.25, 1.0]]
TOKENS = [5, 9, 100, 42, 7, 77, 120]


def make(model: Path, lora: dict[str, Any], **algorithm: Any) -> Learner:
    trainer = {"precision": "fp32", "learning_rate": 1e-2, "lora": lora}
    r = recipe(trainer=trainer, algorithm=algorithm, weights={"dtype": "float32"})
    torch.manual_seed(0)
    return learner(model, r)


def test_only_adapters_are_trained_staged_and_saved(tiny_model: Path) -> None:
    adapted, whole = make(tiny_model, {"rank": 4}), make(tiny_model, {})
    assert adapted.score(TOKENS) == pytest.approx(whole.score(TOKENS), abs=1e-6)
    before = {n: p.clone() for n, p in adapted.model.named_parameters() if not p.requires_grad}
    adapted.step(groups(1, REWARDS), 0, 0)
    assert all(torch.equal(p, before[n]) for n, p in adapted.model.named_parameters() if not p.requires_grad)
    assert all(".lora_" in name for name in adapted.state() if name != "rng")
    staged = StagedWeights(adapted.weight_shards(), torch.float32, CPU)
    assert 0 < staged.flat.numel() < 0.2 * StagedWeights(whole.weight_shards(), torch.float32, CPU).flat.numel()
    assert adapted.score(TOKENS) != pytest.approx(whole.score(TOKENS), abs=1e-3)


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama_tied", ["q_proj", "v_proj", "down_proj"]),
        ("llama_tied", "embed_tokens"),
        ("llama", ["embed_tokens", "o_proj"]),
        ("gemma3", ["embed_tokens", "k_proj"]),
        ("qwen2", "all-linear"),
        ("gpt2", "all-linear"),
        ("gpt2", ["attn.c_proj", "wte", "wpe"]),
        ("qwen3_moe", "all-linear"),
        ("mixtral", ["v_proj", "o_proj"]),
        ("glm4_moe", "all-linear"),
    ],
)
def test_what_an_engine_merges_and_what_is_exported_compute_what_the_trainer_computes(
    family: str, targets: str | list[str], tmp_path: Path
) -> None:
    """The engine has the folder's tensors, by their names there."""
    base = make_model(family, tmp_path / "base")
    learner = make(base, {"rank": 4, "alpha": 8.0, "targets": targets})
    before = learner.score(TOKENS)
    learner.step(groups(1, REWARDS), 0, 0)
    learner.step(groups(2, REWARDS, version=1), 1, 1)
    staged = StagedWeights(learner.weight_shards(), torch.float32, CPU)
    staged.copy()
    arrived = dict(assemble(zip(staged.shards, staged.views, strict=True)))
    engine = Path(shutil.copytree(base, tmp_path / "engine"))
    merged = merge(
        load_file(base / "model.safetensors").items(), arrived, adapters(learner.model, learner.recipe.trainer.lora)
    )
    save_file({n: t.contiguous() for n, t in merged}, engine / "model.safetensors", metadata={"format": "pt"})
    learner.export(learner.state(), tmp_path / "model", torch.float32)
    assert learner.score(TOKENS) != pytest.approx(before, abs=1e-3)
    for folder in (engine, tmp_path / "model"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            logits = model(torch.tensor([TOKENS])).logits[0, :-1]
        theirs = logits.log_softmax(-1).gather(-1, torch.tensor(TOKENS[1:])[:, None])[:, 0]
        assert learner.score(TOKENS) == pytest.approx(theirs.tolist(), abs=1e-5)
    assert (
        read_headers([tmp_path / "model" / "model.safetensors"]).keys() == load_file(base / "model.safetensors").keys()
    )


def test_switched_off_it_is_its_own_reference(tiny_model: Path) -> None:
    """Trajectory balance reads log pi_ref: as with a frozen copy, step after step."""
    keys = {"loss": "trajectory_balance", "aggregation": "sequence", "advantage": "none"}
    learner = make(tiny_model, {"rank": 4}, **keys)
    batches = learner._updates(of(learner, groups(1, REWARDS)))[0].batches
    before = learner._reference_logprobs(batches[0])
    learner.step(groups(1, REWARDS), 0, 0)
    assert torch.equal(learner._reference_logprobs(batches[0]), before)
    assert learner.reference is None


def test_restored_it_goes_on_bit_for_bit(tiny_model: Path) -> None:
    whole, resumed = make(tiny_model, {"rank": 4}), make(tiny_model, {"rank": 4})
    whole.step(groups(1, REWARDS), 0, 0)
    resumed.restore({name: tensor.clone() for name, tensor in whole.state().items()})
    for ours in (whole, resumed):
        ours.step(groups(2, REWARDS, version=1), 1, 1)
    theirs = resumed.state()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in whole.state().items())


@pytest.mark.parametrize(
    ("family", "targets", "said"),
    [
        ("llama", ["q_proj", "nope"], r"\['q_proj', 'nope'\]: LlamaForCausalLM has no module nope"),
        ("llama", r".*\.nope", r".*: LlamaForCausalLM has no module .*nope"),
        ("llama", "q_prj", "q_prj: LlamaForCausalLM has no module q_prj"),
        ("llama", ["norm"], "embeddings, not for model.norm; leave it out"),
        ("llama", ["lm_head"], "the output head takes no adapter; leave it out"),
        ("llama_tied", ["lm_head"], "the output head takes no adapter; leave it out"),
        ("qwen3_moe", ["gate_proj"], "Qwen3MoeForCausalLM has no module gate_proj"),
        ("qwen3_moe", ["experts"], "not for model.layers.0.mlp.experts, model.layers.1.mlp.experts; leave it out"),
        ("qwen3_moe", ["mlp.gate"], "not for model.layers.0.mlp.gate, model.layers.1.mlp.gate; leave it out"),
    ],
)
def test_targets_that_take_no_adapter_are_named(
    family: str, targets: str | list[str], said: str, tmp_path: Path
) -> None:
    model = outline(str(make_model(family, tmp_path)))
    with pytest.raises(UserError, match=rf"trainer\.lora\.targets .*{said}"):
        inject(model, LoraRecipe(rank=4, targets=targets))


def test_the_tiny_model_has_the_modules_that_a_dry_run_knows(tiny_model: Path) -> None:
    names = {name.split(".")[-2] for name in read_headers([tiny_model / "model.safetensors"])}
    assert names == set(TINY_MODULES)


def test_what_all_linear_leaves_out_of_experts_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shapes = trained_shapes(str(make_model("qwen3_moe", tmp_path)), recipe(trainer={"lora": {"rank": 4}}))
    assert {name.split(".")[3] for name in shapes} == {"self_attn"}
    assert "without adapters, are model.layers.0.mlp.experts.down_proj, " in caplog.text
    assert "is a mixture of experts: trainer and engine each choose a token's experts" in caplog.text
    assert caplog.text.count("\n") == 2


def test_a_folder_whose_names_an_engine_could_not_merge_is_refused(tmp_path: Path) -> None:
    """GPT-2's folders may lack `transformer.`; other names that only the loader knows are no place for an adapter."""
    folder, lora = make_model("gpt2", tmp_path), recipe(trainer={"lora": {"rank": 4}})
    weights = load_file(folder / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    save_file(short, folder / "model.safetensors", metadata={"format": "pt"})
    model = inject(outline(str(folder)), lora.trainer.lora)
    require_in_folder(model, str(folder))
    other = {name.replace("c_attn", "qkv"): tensor for name, tensor in weights.items()}
    save_file(other, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"adapters on transformer.h.0.attn.c_attn, transformer.h.1.attn.c_attn could"):
        require_in_folder(model, str(folder))


@pytest.mark.parametrize("name", ["a.lora_magnitude_vector.default.weight", "a.bias", "b.lora_A.default.weight"])
def test_a_trained_tensor_that_cannot_be_merged_is_an_error(name: str) -> None:
    pair = {"a.lora_A.default.weight": torch.ones(1, 2), "a.lora_B.default.weight": torch.ones(3, 1)}
    with pytest.raises(ValueError, match=f"1 trained tensors are no adapters that can be merged, such as {name}"):
        list(merge([("a.weight", torch.ones(3, 2))], {**pair, name: torch.ones(1)}, Adapters(1.0)))


def test_an_adapter_without_a_weight_is_an_error() -> None:
    pair = {"a.lora_A.default.weight": torch.ones(1, 2), "a.lora_B.default.weight": torch.ones(3, 1)}
    with pytest.raises(ValueError, match="no weight for 1 adapters, such as a"):
        list(merge([("b.weight", torch.ones(3, 2))], pair, Adapters(1.0)))
