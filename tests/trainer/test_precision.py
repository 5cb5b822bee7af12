"""bf16 weights and their fp32 masters."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from asyncrl.recipe.trainer import OptimizerRecipe
from asyncrl.trainer.lora import base_weights
from asyncrl.trainer.optimizer import Optimizer
from asyncrl.trainer.precision import hold
from asyncrl.trainer.sharding import master, weight_shards


def model_of(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_what_is_smaller_than_bf16_can_say_is_kept(tiny_model: Path) -> None:
    """1 + 2^-12 is 1 in bf16; eight of them are not lost."""
    model = model_of(tiny_model)
    hold(model, torch.bfloat16)
    optimizer = Optimizer(model, 2.0**-12, OptimizerRecipe(), prefix="")
    name, weight = next((n, p) for n, p in model.named_parameters() if p.ndim == 1)
    before = optimizer.named[name].clone()
    for _ in range(8):
        optimizer.zero_grad()
        for parameter in model.parameters():
            (parameter.float().sum() * -1.0).backward()
        optimizer.step(2.0**-12)
    torch.testing.assert_close(optimizer.named[name] - before, torch.full_like(before, 2.0**-9), rtol=1e-3, atol=0)
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, optimizer.named[name].bfloat16())


def test_gradients_are_summed_in_fp32(tiny_model: Path) -> None:
    """256 + 1 is 256 in bf16."""
    model = model_of(tiny_model)
    hold(model, torch.bfloat16)
    parameter = next(model.parameters())
    for factor in (256.0, 1.0):
        (factor * parameter).sum().backward()
    assert parameter.grad is None
    assert master(parameter).grad.unique().tolist() == [257.0]


def test_pushes_and_checkpoints_are_of_the_masters(tiny_model: Path) -> None:
    exact = dict(model_of(tiny_model).named_parameters())
    model = model_of(tiny_model)
    hold(model, torch.bfloat16)
    for held in weight_shards(model):
        [shard] = held.shards
        assert torch.equal(held.tensor, exact[shard.name])
    state = Optimizer(model, 1.0, OptimizerRecipe(), prefix="").state()
    assert all(torch.equal(state[f"model.{name}"], weight) for name, weight in exact.items())


def test_restored_masters_are_rounded_again(tiny_model: Path) -> None:
    first, second = model_of(tiny_model), model_of(tiny_model)
    for model in (first, second):
        hold(model, torch.bfloat16)
    other = {f"model.{name}": torch.randn_like(master(p)) for name, p in first.named_parameters()}
    Optimizer(second, 1.0, OptimizerRecipe(), prefix="").restore(other)
    for name, parameter in second.named_parameters():
        assert torch.equal(parameter, other[f"model.{name}"].bfloat16())


def test_a_frozen_weight_is_exported_as_it_was(tiny_model: Path) -> None:
    exact = dict(model_of(tiny_model).named_parameters())
    model = model_of(tiny_model).requires_grad_(False)
    hold(model, torch.bfloat16)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert all(torch.equal(weight, exact[name]) for name, weight in base_weights(model))


def test_what_its_class_keeps_in_fp32_stays_so(tiny_model: Path) -> None:
    model = model_of(tiny_model)
    model._keep_in_fp32_modules_strict = {"norm"}
    hold(model, torch.bfloat16)
    assert {p.dtype for n, p in model.named_parameters() if "norm" in n} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if "norm" not in n} == {torch.bfloat16}


def test_a_loss_too_small_for_fp16_is_trained(tiny_model: Path) -> None:
    """Its gradients, of 1e-9, are 0 in fp16."""
    model = model_of(tiny_model)
    hold(model, torch.float16)
    optimizer = Optimizer(model, 1e-3, OptimizerRecipe(), "", torch.float16)
    parameter = next(model.parameters())
    optimizer.zero_grad()
    optimizer.scaled(1e-9 * parameter.float().sum()).backward()
    assert optimizer.clip(1e9) == pytest.approx(1e-9 * parameter.numel() ** 0.5, rel=1e-2)


def test_what_overflows_changes_nothing_and_is_scaled_by_less(tiny_model: Path) -> None:
    model = model_of(tiny_model)
    hold(model, torch.float16)
    optimizer = Optimizer(model, 1e-3, OptimizerRecipe(), "", torch.float16)
    before = {name: weight.clone() for name, weight in optimizer.named.items()}
    num_skipped = 0
    while num_skipped < 20:
        optimizer.zero_grad()
        optimizer.scaled(10.0 * sum(p.float().sum() for p in model.parameters())).backward()
        if math.isfinite(optimizer.clip(1.0)):
            break
        optimizer.skip()
        num_skipped += 1
        assert all(torch.equal(optimizer.named[name], weight) for name, weight in before.items())
    assert 0 < num_skipped < 20
    optimizer.step(1e-3)
    assert not torch.equal(next(iter(optimizer.named.values())), next(iter(before.values())))
    scale = optimizer.state()["loss_scale"]
    assert scale[0] < 65536
    other = Optimizer(model, 1e-3, OptimizerRecipe(), "", torch.float16)
    other.restore(optimizer.state())
    assert torch.equal(other.state()["loss_scale"], scale)
