"""Attention over prefix trees against the model's own over one sequence after the other, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from asyncrl.trainer import attention
from asyncrl.trainer.attention import NAME, RowTree
from asyncrl.trainer.compiled import compile_layers
from asyncrl.trainer.tree import prefix_tree

SIZES = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 1024, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "gemma3_text": {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 96},
    "qwen3_moe": EXPERTS,
}


def sequences() -> list[np.ndarray]:
    """Two groups; the row has more than a few of FlexAttention's blocks and does not end with one."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 500, n) for n in (150, 40)]
    return [np.concatenate([p, rng.integers(3, 500, n)]) for p in prompts for n in (30, 90, 200)]


def loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return -logits[:-1].float().log_softmax(-1).gather(-1, tokens[1:, None]).sum()


def gradients(model: Any, losses: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.stack(losses).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_equals_its_sequences(family: str, device: torch.device) -> None:
    compare(family, torch.float32, device)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_compiled_layers_give_the_same(
    family: str, width: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_is_flash", False)
    compare(family, torch.bfloat16, device, width)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("family", FAMILIES)
def test_flash_attention_gives_the_same(family: str, width: int, device: torch.device) -> None:
    if not attention.use_flash(device):
        pytest.skip("flash-attn-4 is not installed, or this is no Hopper GPU")
    compare(family, torch.bfloat16, device, width)


def compare(family: str, dtype: torch.dtype, device: torch.device, width: int = 64) -> None:
    """bf16: with compiled layers."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | {"head_dim": width}), **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device, dtype).eval()
    tokens = [torch.tensor(s, device=device) for s in sequences()]
    tree = prefix_tree(sequences())
    row = RowTree(torch.tensor(tree.depths, device=device), torch.tensor(tree.ends, device=device), tree.nodes)
    ids = torch.tensor(tree.tokens, device=device)[None]
    model.set_attn_implementation("eager")
    alone = [loss(model(input_ids=t[None], use_cache=False).logits[0], t) for t in tokens]
    expected = gradients(model, alone)
    model.set_attn_implementation(NAME)
    if dtype != torch.float32 and device.type == "cuda":
        assert compile_layers(model)
    logits = model(input_ids=ids, position_ids=row.depths[None], tree=row.prepare(model), use_cache=False).logits[0]
    together = [loss(logits[torch.tensor(path, device=device)], t) for path, t in zip(tree.paths, tokens, strict=True)]
    got = gradients(model, together)
    # A GPU's fp32 products may be TF32's, of 11 bits; bf16 has 8.
    rounding = {torch.float32: 2**-11, torch.bfloat16: 2**-8}[dtype]
    for ours, theirs in zip(together, alone, strict=True):
        assert abs(ours - theirs) < 4 * rounding * theirs
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    assert torch.stack([(got[name] - expected[name]).norm() for name in expected]).norm() < 16 * rounding * whole
