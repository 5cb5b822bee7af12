"""Planned bytes against what autograd saves of real layers, and against sums done by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from asyncrl.planner import gpus, memory, models
from asyncrl.planner.shape import Shape
from asyncrl.planner.work import assumed
from asyncrl.recipe.load import load
from asyncrl.recipe.schema import Recipe
from asyncrl.trainer.attention import NAME, RowTree

NUM_TOKENS = 256
SIZES = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 200}


def recipe(*overrides: str) -> Recipe:
    return load(Path(__file__).parents[2] / "recipes/gsm8k-qwen.yaml", overrides)


def saved_bytes(family: str, layers: int, checkpointing: bool) -> tuple[int, Shape]:
    """What a forward pass in bf16 leaves for the backward one, without weights."""
    config = transformers.AutoConfig.for_model(
        family, **SIZES, head_dim=24, num_hidden_layers=layers, vocab_size=64, attn_implementation=NAME
    )
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if NUM_TOKENS in tensor.shape:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tree = RowTree.of_one(NUM_TOKENS, torch.device("cpu"))
    inputs: dict[str, Any] = {"input_ids": torch.zeros(1, NUM_TOKENS, dtype=torch.long), "tree": tree}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.get_decoder()(**inputs, position_ids=tree.depths[None], use_cache=False)
    shape = Shape.of_config(json.loads(config.to_json_string(use_diff=False)), family)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values()), shape


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_activations_are_what_autograd_saves(family: str) -> None:
    (two, shape), (four, _) = (saved_bytes(family, layers, checkpointing=False) for layers in (2, 4))
    assert (four - two) / 2 / NUM_TOKENS == pytest.approx(memory.activation_bytes(shape), rel=0.01)


def test_with_checkpointing_a_layer_saves_its_input() -> None:
    (two, shape), (four, _) = (saved_bytes("llama", layers, checkpointing=True) for layers in (2, 4))
    assert (four - two) / 2 / NUM_TOKENS == 2 * shape.hidden


def test_a_rank_holds_its_share_of_sixteen_bytes_a_parameter() -> None:
    shape, _ = models.find("Qwen/Qwen2.5-7B", Path())
    one, eight = (memory.trainer(recipe(), shape, ranks, ranks) for ranks in (1, 8))
    for held, ranks in ((one, 1), (eight, 8)):
        states = held.parts["weights"] + held.parts["gradients"] + held.parts["optimizer"]
        assert states == 16 * shape.parameters / ranks
        assert held.total == sum(held.parts.values())
    assert one.parts["bf16 copies"] == 2 * shape.parameters
    assert one.parts["staging"] == 2 * 2 * shape.parameters + memory.TRANSFER_BUFFERS
    hybrid = memory.trainer(recipe(), shape, 8, 4)
    assert hybrid.parts["weights"] == 4 * shape.parameters / 4


def test_adapters_leave_the_base_whole_on_every_rank() -> None:
    shape, _ = models.find("Qwen/Qwen2.5-7B", Path())
    held = memory.trainer(recipe("trainer.lora.rank=16", "weights.channel=auto"), shape, 4, 4)
    adapters = 16 * shape.linear_widths * shape.layers
    assert adapters == pytest.approx(40.4e6, rel=0.01)  # peft's own count for r = 16 on all linear layers
    assert held.parts["weights"] == 2 * shape.parameters + 4 * adapters / 4
    assert held.parts["optimizer"] == 8 * adapters / 4
    assert held.parts["staging"] == 0
    assert held.loading - memory.TRAINER_RESERVE == 4 * shape.parameters


def test_a_reference_and_a_critic_take_their_room() -> None:
    shape, _ = models.find("Qwen/Qwen2.5-7B", Path())
    plain = memory.trainer(recipe(), shape, 8, 8)
    reference = memory.trainer(recipe("algorithm.kl_coef=0.1"), shape, 8, 8)
    critic = memory.trainer(recipe("algorithm.preset=ppo"), shape, 8, 8)
    assert sum(reference.parts.values()) - sum(plain.parts.values()) == pytest.approx(2 * shape.parameters / 8)
    assert sum(critic.parts.values()) - sum(plain.parts.values()) == pytest.approx(16 * shape.parameters / 8)


def test_what_the_weights_leave_is_the_kv_cache() -> None:
    shape, _ = models.find("Qwen/Qwen2.5-7B", Path())
    gpu = gpus.find("H100")
    one, two = (memory.generator(recipe(), shape, gpu, n, assumed(recipe())) for n in (1, 2))
    assert memory.kv_bytes(recipe(), shape, 1) == 57_344  # 2 x 28 layers x 4 heads x 128 x 2 bytes
    assert memory.kv_bytes(recipe(), shape, 8) == 57_344 / 4
    assert memory.kv_bytes(recipe("weights.dtype=float32"), shape, 1) == 2 * 57_344
    usable = 0.85 * gpu.memory_bytes - memory.GENERATOR_RESERVE
    assert one.kv_cache == pytest.approx(usable - 2 * shape.parameters)
    assert two.kv_cache == pytest.approx(usable - shape.parameters)
    mean_tokens = 0.25 * 1024 + 0.4 * 512
    assert one.sequences == int(one.kv_cache / 57_344 / mean_tokens)
    assert one.fits
    large, _ = models.find("Qwen/Qwen3-32B", Path())
    assert not memory.generator(recipe(), large, gpus.find("L40S"), 1, assumed(recipe())).fits
