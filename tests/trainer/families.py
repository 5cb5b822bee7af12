"""Tiny random models of several families, which differ in what their folders hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

_SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
_GPT2 = {"vocab_size": 259, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512}

FAMILIES = {
    # A head of its own; a head that is the embedding.
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES, tie_word_embeddings=False)),
    "llama_tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES, tie_word_embeddings=True)),
    # Biases.
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_SIZES)),
    # Scaled embedding, norms around 1 + w.
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**_SIZES, query_pre_attn_scalar=32)),
    # Layers stored [in, out].
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT2, bos_token_id=1, eos_token_id=2)),
    # Experts fused in memory, one by one in the folder.
    "qwen3_moe": lambda: hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**_SIZES, **_EXPERTS, num_experts=4)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**_SIZES, num_experts_per_tok=2, num_local_experts=4)),
    "qwen2_moe": lambda: hf.Qwen2MoeForCausalLM(
        hf.Qwen2MoeConfig(**_SIZES, **_EXPERTS, num_experts=4, shared_expert_intermediate_size=64)
    ),
    "olmoe": lambda: hf.OlmoeForCausalLM(hf.OlmoeConfig(**_SIZES, num_experts_per_tok=2, num_experts=4)),
    # A buffer that belongs to the state.
    "glm4_moe": lambda: hf.Glm4MoeForCausalLM(
        hf.Glm4MoeConfig(**_SIZES, **_EXPERTS, n_routed_experts=4, first_k_dense_replace=1, n_group=1, topk_group=1)
    ),
}


def make_model(family: str, folder: Path) -> Path:
    """Write one whose every tensor counts: none is zero or one throughout."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith("correction_bias"))]:
            tensor.add_(0.05 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    return folder
