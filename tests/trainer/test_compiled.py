"""Layers as graphs, seen on a CPU by what dynamo makes of them; what inductor makes of those is for `tests/gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch._dynamo.source import TensorPropertySource
from torch._dynamo.testing import CompileCounter

from asyncrl.errors import RunFailed
from asyncrl.trainer import attention
from asyncrl.trainer.compiled import compile_layers, warm_up
from asyncrl.trainer.fit import together
from asyncrl.trainer.model import Policy

SIZES = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "llama": ({}, 2),
    "qwen3_moe": ({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}, 2),
    "gemma3_text": ({"sliding_window": 48, "layer_types": ["sliding_attention", "full_attention"] * 2}, 4),
}
"""And graphs at most: for each kind of layer one for a first row and one for all that are longer."""
CPU = torch.device("cpu")


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention, which computes on a CPU without gradients."""
    monkeypatch.setattr(attention, "takes_flex", lambda device: True)
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def model_of(family: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SIZES, **settings, attn_implementation=attention.NAME)
    return transformers.AutoModelForCausalLM.from_config(config)


def row(length: int) -> list[np.ndarray]:
    rng = np.random.default_rng(length)
    start = rng.integers(3, 250, length // 2)
    return [np.concatenate([start, rng.integers(3, 250, length // 2)]) for _ in range(2)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_graphs_serve_rows_of_any_length(family: str, as_on_gpu: None) -> None:
    settings, most = FAMILIES[family]
    model, graphs = model_of(family, **settings), CompileCounter()
    lengths = (200, 330, 510, 642)
    expected = [together(model, row(length)) for length in lengths]
    assert compile_layers(model, backend=graphs)
    for length, alone in zip(lengths, expected, strict=True):
        for ours, theirs in zip(together(model, row(length)), alone, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert 0 < graphs.frame_count <= most


def test_numbers_in_a_graph_are_sizes_of_tensors(as_on_gpu: None) -> None:
    """FlashAttention 4's kernels take no other; and blocks are of a fixed size."""
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        sources = torch._guards.TracingContext.get().fake_mode.shape_env.var_to_sources
        for node in graph.graph.nodes:
            if "flex_attention" in str(node.target):
                seen.append(node.args[4][-3:-1])
                numbers = [n.meta["example_value"] for n in (*node.args[4][:2], *node.args[-1])]
                symbols = [n.node.expr for n in numbers if isinstance(n, torch.SymInt)]
                assert len(symbols) > 1
                assert all(any(isinstance(s, TensorPropertySource) for s in sources[symbol]) for symbol in symbols)
        return graph

    model = model_of("llama")
    assert compile_layers(model, backend=backend)
    together(model, row(200))
    assert seen == [(128, 128)]


def test_layers_that_are_no_graph_run_as_they_are(as_on_gpu: None, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("llama")

    def breaks(*_: Any) -> None:
        torch._dynamo.graph_break()

    model.model.layers[0].mlp.register_forward_hook(breaks)
    expected = together(model, row(200))
    assert not compile_layers(model)
    assert "LlamaDecoderLayer is not compiled, which makes a step slower: " in caplog.text
    torch.testing.assert_close(together(model, row(200))[0], expected[0])


def test_warming_up_leaves_no_gradient_and_ends_at_the_budget() -> None:
    model = model_of("llama")
    policy, lengths = Policy(model, torch.float32), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    warm_up(policy, CPU, most=300)
    assert lengths == [40, 40, 300, 300]
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_what_does_not_compile_ends_the_start() -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no kernel image\nfor this device")

    model = model_of("llama")
    model.model.register_forward_pre_hook(fails)
    with pytest.raises(RunFailed, match=r"its layers do not run on this GPU: no kernel image$"):
        warm_up(Policy(model, torch.float32), CPU, most=300)
