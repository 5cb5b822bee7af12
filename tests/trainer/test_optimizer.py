"""AdamW and Muon as the trainer uses them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_model
from safetensors.torch import load_file
from test_learner import groups, learner, recipe

from asyncrl.checkpoint import files
from asyncrl.recipe.trainer import OptimizerRecipe
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.optimizer import Optimizer, hidden_matrices, is_decayed

RATE, DECAY = 0.1, 0.1
BATCHES = [groups(seed, [[1.0, 0.0, 0.5], [0.0, 0.25, 1.0]], version=seed - 1) for seed in range(1, 5)]


class HomeMadeNorm(torch.nn.Module):
    """Of no class that anyone knows; one scale per head."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 4))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(3, 4)
        self.up_proj = torch.nn.Linear(4, 4)
        self.experts_bias = torch.nn.Parameter(torch.ones(2, 4))
        self.scale = torch.nn.Parameter(torch.ones(4))
        self.q_norm = HomeMadeNorm()


def test_weight_decay_is_for_matrices_alone() -> None:
    """A step without a gradient leaves norms and biases as they are, and shrinks matrices by 1 - rate x decay."""
    model = Model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ours = Optimizer(model, RATE, OptimizerRecipe(weight_decay=DECAY), prefix="")
    ours.zero_grad()
    ours.step(RATE)
    shrunk = {"embed_tokens.weight", "up_proj.weight"}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - RATE * DECAY if name in shrunk else 1.0))


@pytest.mark.parametrize("family", ["llama_tied", "gemma3", "gpt2", "qwen3_moe"])
def test_groups_of_real_models(family: str, tmp_path: Path) -> None:
    model = learner(make_model(family, tmp_path / "base")).model
    spared = {name for name, p in model.named_parameters() if not is_decayed(name, p)}
    assert spared == {name for name, p in model.named_parameters() if p.ndim == 1}
    hidden = hidden_matrices(model)
    assert hidden
    assert all(p.ndim == 2 for name, p in model.named_parameters() if name in hidden)
    assert not any(part in name for name in hidden for part in ("embed", "wte", "wpe", "lm_head", "norm"))
    assert sum("attn.c_attn" in name or "q_proj" in name for name in hidden) == model.config.num_hidden_layers


def make(model: Path, steps: int = 4, **trainer: Any) -> Learner:
    keys = {"precision": "fp32", "learning_rate": 1e-3, "tokens_per_microbatch": 80, **trainer}
    torch.manual_seed(0)
    return learner(model, recipe(trainer=keys, max_steps=steps))


MUON = {"optimizer": {"name": "muon", "weight_decay": 0.1}}


def test_muon_moves_hidden_matrices_and_adamw_the_rest(tiny_model: Path) -> None:
    """Against one step by the formulas: Newton-Schulz of the first momentum, scaled by 0.2 sqrt(max(rows, columns))."""
    ours, plain = make(tiny_model, **MUON), make(tiny_model, optimizer={"weight_decay": 0.1})
    before = {name: p.detach().clone() for name, p in ours.optimizer.named.items()}
    for learner_ in (ours, plain):
        learner_.step(BATCHES[0], 0, 0)
    theirs = plain.optimizer.named
    hidden = hidden_matrices(ours.model)
    assert 0 < len(hidden) < len(before)
    for name, parameter in ours.optimizer.named.items():
        if name not in hidden:
            assert torch.equal(parameter, theirs[name])
            continue
        gradient = parameter.grad
        direction = gradient.mul(1 - 0.95).lerp(gradient, 1 - 0.95) if gradient is not None else None
        assert direction is not None
        u, _, v = torch.linalg.svd(direction, full_matrices=False)
        moved = (before[name] * (1 - 1e-3 * 0.1) - parameter.detach()) / (1e-3 * 0.2 * math.sqrt(max(parameter.shape)))
        # Newton-Schulz leaves singular values between 0.5 and 1.5 where they were not noise, in the same bases.
        along = (u.T @ moved @ v.T).diagonal()
        strong = torch.linalg.svdvals(direction) > 0.05 * torch.linalg.svdvals(direction).max()
        assert float(along[strong].min()) > 0.4
        assert float(along[strong].max()) < 1.6


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_with_muon_a_resumed_run_equals_an_unbroken_one(tiny_model: Path, tmp_path: Path, precision: str) -> None:
    keys = {**MUON, "schedule": "cosine", "warmup_steps": 1, "precision": precision}
    whole, first, second = (make(tiny_model, **keys) for _ in range(3))
    for step, batch in enumerate(BATCHES):
        whole.step(batch, step, 0)
    for step in (0, 1):
        first.step(BATCHES[step], step, 0)
    files.write(first.state(), tmp_path, 0)
    second.restore(files.read(tmp_path))
    for step in (2, 3):
        second.step(BATCHES[step], step, 0)
    ours, theirs = second.state(), whole.state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert any(name.startswith("optimizer.momentum_buffer.") for name in ours)


ADAMW = {"optimizer": {"weight_decay": 0.1}}


def offloaded(keys: dict[str, Any]) -> dict[str, Any]:
    return {"optimizer": {**keys["optimizer"], "offload": True}}


@pytest.mark.parametrize("keys", [ADAMW, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_offloaded_states_give_the_same_weights_bit_for_bit(
    tiny_model: Path, tmp_path: Path, keys: dict[str, Any], precision: str
) -> None:
    """Also over a resume that turns it on and one that turns it off: a checkpoint does not know of it."""
    plain, ours = (
        make(tiny_model, **keys, precision=precision),
        make(tiny_model, **offloaded(keys), precision=precision),
    )
    assert len(ours.optimizer.optimizers) == len(ours.optimizer.named) > len(plain.optimizer.optimizers)
    for step in (0, 1):
        assert ours.step(BATCHES[step], step, 0).metrics["trainer/grad_norm"] == pytest.approx(
            plain.step(BATCHES[step], step, 0).metrics["trainer/grad_norm"], rel=1e-6
        )
    for name, one in (("plain", plain), ("ours", ours)):
        files.write(one.state(), tmp_path / name, 0)
    on, off = make(tiny_model, **offloaded(keys), precision=precision), make(tiny_model, **keys, precision=precision)
    on.restore(files.read(tmp_path / "plain"))
    off.restore(files.read(tmp_path / "ours"))
    for step in (2, 3):
        for one in (plain, ours, on, off):
            one.step(BATCHES[step], step, 0)
    whole = plain.state()
    for one in (ours, on, off):
        state = one.state()
        assert state.keys() == whole.keys()
        assert all(torch.equal(tensor, whole[name]) for name, tensor in state.items())


def test_offloaded_states_are_brought_back_to_the_same_memory(tiny_model: Path) -> None:
    ours = make(tiny_model, **offloaded(ADAMW))
    ours.step(BATCHES[0], 0, 0)
    moments = {name: tensor for name, tensor in ours.optimizer.state().items() if ".exp_avg" in name}
    assert len(moments) == 2 * len(ours.optimizer.named)
    places = {name: tensor.data_ptr() for name, tensor in moments.items()}
    ours.step(BATCHES[1], 1, 0)
    assert {name: ours.optimizer.state()[name].data_ptr() for name in moments} == places


def test_state_lies_under_the_names_of_earlier_versions(tiny_model: Path, tmp_path: Path) -> None:
    """Step and moments of each parameter by its name, whatever group it is in: their checkpoints resume."""
    ours = make(tiny_model)
    ours.step(BATCHES[0], 0, 0)
    files.write(ours.state(), tmp_path, 0)
    names = {name for name in load_file(tmp_path / "rank_0.safetensors") if name.startswith("optimizer.")}
    keys = ("step", "exp_avg", "exp_avg_sq")
    assert names == {f"optimizer.{key}.{name}" for name, _ in ours.model.named_parameters() for key in keys}


def test_another_optimizer_than_the_checkpoint_s_is_said(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adamw, muon = make(tiny_model), make(tiny_model, **MUON)
    adamw.step(BATCHES[0], 0, 0)
    files.write(adamw.state(), tmp_path, 0)
    muon.restore(files.read(tmp_path))
    assert "the checkpoint is of another optimizer" in caplog.text
    assert "embed_tokens" not in caplog.text
    caplog.clear()
    make(tiny_model).restore(files.read(tmp_path))
    assert caplog.text == ""
