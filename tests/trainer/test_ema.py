"""The running mean of the weights: its formula, its state, and the model that is made of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from test_learner import groups, learner, recipe
from transformers import AutoModelForCausalLM

from asyncrl.checkpoint import files
from asyncrl.errors import UserError
from asyncrl.recipe.check_trainer import check_trainer
from asyncrl.recipe.schema import Recipe
from asyncrl.trainer.ema import as_weights
from asyncrl.trainer.learner import Learner

BATCHES = [groups(seed, [[1.0, 0.0, 0.25], [0.5, 0.0]], version=0) for seed in (1, 2, 3, 4)]
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "several updates": {"precision": "fp32", "epochs": 2, "minibatches": 2},
    "adapters": {"precision": "fp32", "lora": {"rank": 4}},
}


def with_ema(ema: float | None = 0.75, **trainer: Any) -> Recipe:
    return recipe(trainer={"learning_rate": 1e-2, "tokens_per_microbatch": 80, "ema": ema, **trainer})


def weights(ours: Learner) -> dict[str, torch.Tensor]:
    """The masters, copied."""
    return {name: p.detach().clone() for name, p in ours.optimizer.named.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_mean_of_the_weights_after_each_training_step(tiny_model: Path, kind: str) -> None:
    ours = learner(tiny_model, with_ema(**KINDS[kind]))
    expected = weights(ours)
    for step, batch in enumerate(BATCHES):
        ours.step(batch, step, 0)
        expected = {
            name: 0.75 * mean + 0.25 * p
            for (name, mean), p in zip(expected.items(), weights(ours).values(), strict=True)
        }
    assert ours.ema.means.keys() == expected.keys()
    assert all(mean.dtype == torch.float32 for mean in ours.ema.means.values())
    for name, mean in ours.ema.means.items():
        torch.testing.assert_close(mean, expected[name], rtol=1e-5, atol=1e-7)
    assert any(
        not torch.equal(mean, p) for mean, p in zip(ours.ema.means.values(), weights(ours).values(), strict=True)
    )


def test_it_changes_nothing_that_is_trained(tiny_model: Path) -> None:
    one, other = learner(tiny_model, with_ema()), learner(tiny_model, with_ema(None))
    for step, batch in enumerate(BATCHES[:2]):
        one.step(batch, step, 0)
        other.step(batch, step, 0)
    assert all(torch.equal(p, q) for p, q in zip(weights(one).values(), weights(other).values(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_goes_on_with_it_bit_for_bit(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    r = with_ema(**KINDS[kind])
    unbroken = learner(tiny_model, r)
    for step, batch in enumerate(BATCHES):
        if step == 2:
            files.write(unbroken.state(), tmp_path / "trainer", 0)
        unbroken.step(batch, step, 0)
    resumed = learner(tiny_model, r)
    resumed.restore(files.read(tmp_path / "trainer"))
    for step in (2, 3):
        resumed.step(BATCHES[step], step, 0)
    one, other = unbroken.state(), resumed.state()
    assert one.keys() == other.keys()
    assert any(name.startswith("ema.") for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_exported_mean_is_a_model(tiny_model: Path, tmp_path: Path) -> None:
    ours = learner(tiny_model, with_ema())
    for step, batch in enumerate(BATCHES[:2]):
        ours.step(batch, step, 0)
    files.write(ours.state(), tmp_path / "trainer", 0)
    ours.export(as_weights(files.read(tmp_path / "trainer", prefix="ema.")), tmp_path / "model_ema", torch.float32)
    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model_ema", dtype=torch.float32).named_parameters())
    assert loaded.keys() == ours.ema.means.keys()
    assert all(torch.equal(loaded[name], mean) for name, mean in ours.ema.means.items())


def test_of_adapters_the_factors_are_averaged_and_not_their_product(tiny_model: Path) -> None:
    """What the mean of the merged weights would be is another matrix, of a higher rank."""
    ours = learner(tiny_model, with_ema(precision="fp32", lora={"rank": 1}))
    [a, *_] = [name for name in ours.ema.means if "q_proj.lora_A" in name]
    b = a.replace("lora_A", "lora_B")
    merged = weights(ours)[b] @ weights(ours)[a]
    for step, batch in enumerate(BATCHES):
        ours.step(batch, step, 0)
        now = weights(ours)
        merged = 0.75 * merged + 0.25 * now[b] @ now[a]
    kept = ours.ema.means[b] @ ours.ema.means[a]
    assert torch.linalg.matrix_rank(kept) == 1
    assert torch.linalg.matrix_rank(merged) > 1
    assert 0 < float((kept - merged).norm() / merged.norm()) < 0.2


def test_a_checkpoint_without_one_begins_one_and_says_so(tiny_model: Path, caplog: Any) -> None:
    before = learner(tiny_model, with_ema(None))
    before.step(BATCHES[0], 0, 0)
    ours = learner(tiny_model, with_ema())
    with caplog.at_level(logging.WARNING):
        ours.restore(before.state())
    assert "the checkpoint has no running mean of the weights" in caplog.text
    assert all(torch.equal(mean, p) for mean, p in zip(ours.ema.means.values(), weights(before).values(), strict=True))


def test_another_trainer_keeps_none() -> None:
    with pytest.raises(UserError, match=r"trainer.ema is of trainer.backend fsdp, and \./mine.py:Mine keeps no"):
        check_trainer(with_ema(backend="./mine.py:Mine", tokens_per_microbatch=4096))
