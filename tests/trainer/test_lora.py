"""Adapters: what is trained, saved, sent and exported, and that it all describes one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_learner import CPU, groups, learner, recipe
from transformers import AutoModelForCausalLM

from asyncrl.errors import UserError
from asyncrl.trainer.learner import Learner
from asyncrl.weights.lora import merge
from asyncrl.weights.pieces import assemble
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
    staged = StagedWeights(adapted.model, torch.float32, CPU)
    assert 0 < staged.flat.numel() < 0.2 * StagedWeights(whole.model, torch.float32, CPU).flat.numel()
    assert adapted.score(TOKENS) != pytest.approx(whole.score(TOKENS), abs=1e-3)


def test_what_an_engine_merges_and_what_is_exported_compute_what_the_trainer_computes(
    tiny_model: Path, tmp_path: Path
) -> None:
    learner = make(tiny_model, {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj", "down_proj"]})
    learner.step(groups(1, REWARDS), 0, 0)
    staged = StagedWeights(learner.model, torch.float32, CPU)
    staged.copy()
    engine = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    arrived = dict(assemble(zip(staged.pieces, staged.views, strict=True)))
    base = {name: p.detach().clone() for name, p in engine.named_parameters()}
    engine.load_state_dict(dict(merge(base.items(), arrived, scale=2.0)), strict=False)
    learner.export(learner.state(), tmp_path / "model", torch.float32)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    for model in (engine, exported):
        with torch.no_grad():
            logits = model(torch.tensor([TOKENS])).logits[0, :-1]
        theirs = logits.log_softmax(-1).gather(-1, torch.tensor(TOKENS[1:])[:, None])[:, 0]
        assert learner.score(TOKENS) == pytest.approx(theirs.tolist(), abs=1e-5)
    assert not [name for name in exported.state_dict() if "lora" in name]


def test_switched_off_it_is_its_own_reference(tiny_model: Path) -> None:
    """Trajectory balance reads log pi_ref: as with a frozen copy, step after step."""
    keys = {"loss": "trajectory_balance", "aggregation": "sequence", "advantage": "none"}
    learner = make(tiny_model, {"rank": 4}, **keys)
    batches = learner._updates(learner._samples(groups(1, REWARDS), 0, 0)[0])[0].batches
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


def test_unknown_targets_are_named(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.lora\.targets \['nope'\]: "):
        make(tiny_model, {"rank": 4, "targets": ["nope"]})


def test_an_adapter_without_a_weight_is_an_error() -> None:
    adapters = {"a.lora_A.default.weight": torch.ones(1, 2), "a.lora_B.default.weight": torch.ones(3, 1)}
    with pytest.raises(ValueError, match="no weight for 1 adapters, such as a"):
        list(merge([("b.weight", torch.ones(3, 2))], adapters, 1.0))
