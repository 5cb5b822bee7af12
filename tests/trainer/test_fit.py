"""Whether rows may be prefix trees is decided by whether the result is right, not by how much a model rounds."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from asyncrl.errors import UserError
from asyncrl.trainer import attention, fit
from asyncrl.trainer.exact import exactly
from asyncrl.trainer.fit import choose_attention
from asyncrl.trainer.model import head, takes_trees

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def model_of(family: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **more})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@torch.no_grad()
def rounding(model: Any) -> float:
    """How far the two ways lie apart in fp32, in nats."""
    sequences = fit._sequences(model)
    alone = [model(input_ids=torch.tensor(s)[None]).logits[0].log_softmax(-1) for s in sequences]
    model.set_attn_implementation(attention.NAME)
    together = [row.log_softmax(-1) for row in fit.together(model, sequences)]
    model.set_attn_implementation("sdpa")
    return max(float((a - b).abs().max()) for a, b in zip(alone, together, strict=True))


def test_rounding_decides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("llama", num_hidden_layers=8, initializer_range=1.0)
    with torch.no_grad():
        model.lm_head.weight *= 100.0
    assert rounding(model) > 5e-3
    choose_attention(model, head(model), "noisy")
    assert takes_trees(model)
    assert not caplog.records


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("mistral", {"sliding_window": 4}),
        ("granite", {"logits_scaling": 3.0}),
        ("mixtral", EXPERTS),
        ("qwen3_moe", EXPERTS),
    ],
)
def test_trees_are_taken_and_nothing_else_changes(family: str, more: dict[str, Any]) -> None:
    model = model_of(family, **more)
    weights, experts = model.state_dict(keep_vars=True), model.get_experts_implementation()
    dtypes = [b.dtype for b in model.buffers()]
    choose_attention(model, head(model), family)
    assert takes_trees(model)
    assert model.get_experts_implementation() == experts
    assert [b.dtype for b in model.buffers()] == dtypes
    assert all(now is weights[name] for name, now in model.state_dict(keep_vars=True).items())


@pytest.mark.parametrize(
    ("family", "more", "reason"),
    [
        ("mamba", {"state_size": 4}, "its outputs on a prefix tree"),
        ("bloom", {"n_head": 4, "n_layer": 2}, "its outputs on a prefix tree"),
        ("gemma2", {"query_pre_attn_scalar": 8}, "caps its scores"),
        ("gpt_oss", EXPERTS, "has sinks"),
    ],
)
def test_what_does_not_fit_keeps_its_own_and_says_why(
    family: str, more: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(family, **more)
    usual = model.config._attn_implementation
    with caplog.at_level(logging.WARNING, logger="asyncrl"):
        choose_attention(model, head(model), family)
    assert model.config._attn_implementation == usual
    (said,) = [record.getMessage() for record in caplog.records if record.name == "asyncrl.trainer.fit"]
    assert said.startswith(f"{family} is trained one trajectory at a time")
    assert reason in said


def test_attention_that_does_not_run_is_no_misfit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Uncompiled(torch.autograd.Function):
        @staticmethod
        def forward(*_: object) -> torch.Tensor:
            raise RuntimeError("ptxas fatal: no space left on device")

    monkeypatch.setattr(attention, "_Blockwise", Uncompiled)
    model = model_of("llama")
    with pytest.raises(RuntimeError, match="ptxas"):
        choose_attention(model, head(model), "llama")


def test_where_a_kernel_knows_no_float64_fp32_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    model, usual = model_of("llama"), torch.nn.functional.silu

    def silu(x: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError('"fused_silu" not implemented for Double')
        return usual(x, *rest, **more)

    monkeypatch.setattr(torch.nn.functional, "silu", silu)
    choose_attention(model, head(model), "llama")
    assert takes_trees(model)


def test_logits_of_another_head_are_refused() -> None:
    model = model_of("granite", logits_scaling=3.0)
    model.config.logits_scaling = 4.0
    known = head(model)
    model.config.logits_scaling = 3.0
    with pytest.raises(UserError, match=r"granite\) changes its logits"):
        choose_attention(model, known, "granite")


@torch.no_grad()
def test_exactly_is_what_a_float64_model_computes() -> None:
    model = model_of("qwen3_moe", **EXPERTS)
    ids = torch.arange(20, 40)[None]
    with exactly(model):
        got = model(input_ids=ids).logits
    rounded = model(input_ids=ids).logits
    assert got.dtype == torch.float64
    assert rounded.dtype == torch.float32
    model.set_experts_implementation("eager")
    expected = model.double()(input_ids=ids).logits
    # The model's own code rounds its norms and its router to fp32, even in float64.
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rounded.double(), expected, rtol=1e-4, atol=1e-4)
