"""Sizes worked out from a config against models that transformers builds from it, and against published counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from asyncrl.errors import UserError
from asyncrl.models import TINY_LLAMA, make_tiny_llama
from asyncrl.planner import models
from asyncrl.planner.shape import FAMILIES, Shape

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "vocab_size": 131,
}
CONFIGS = {
    "llama": {},
    "llama, tied, biases": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "llama, heads of another width": {"head_dim": 10},
    "mistral": {},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 12},
    "qwen3, biases": {"attention_bias": True},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_real_model(name: str) -> None:
    config = transformers.AutoConfig.for_model(name.split(",")[0], **SMALL, **CONFIGS[name])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    shape = Shape.of_config(json.loads(config.to_json_string(use_diff=False)), name)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    layer = model.get_decoder().layers[0]
    assert shape.layer_parameters == sum(p.numel() for p in layer.parameters())
    assert {family.split(",")[0] for family in CONFIGS} == set(FAMILIES)


def test_adapters_have_the_widths_of_the_linear_maps() -> None:
    config = transformers.AutoConfig.for_model("qwen3", **SMALL)
    with torch.device("meta"):
        layer = transformers.AutoModelForCausalLM.from_config(config).get_decoder().layers[0]
    linear = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    shape = Shape.of_config(json.loads(config.to_json_string(use_diff=False)), "x")
    assert shape.linear_widths == sum(m.in_features + m.out_features for m in linear)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-3B", 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
    ],
)
def test_published_sizes_give_the_published_counts(model: str, count: int, tmp_path: Path) -> None:
    """The counts are those of the models' safetensors on the hub."""
    shape, where = models.find(model, tmp_path)
    assert shape.parameters == count
    assert where == "published sizes"


def test_the_tiny_llama_is_the_one_that_is_made(tmp_path: Path) -> None:
    made = make_tiny_llama(tmp_path / "made", seed=0)
    assert models.find("made", tmp_path) == (models.find(TINY_LLAMA, tmp_path)[0], "config.json of made")
    assert made.is_dir()


def test_the_hub_cache_comes_before_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--Qwen--Qwen3-8B/snapshots/0123"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**models.PUBLISHED["Qwen/Qwen3-8B"], "num_hidden_layers": 7}))
    shape, where = models.find("Qwen/Qwen3-8B", tmp_path / "elsewhere")
    assert (shape.layers, where) == (7, "config.json of the hub's cache")


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing here knows its sizes; download it"):
        models.find("some/model", tmp_path)
    with pytest.raises(UserError, match="is of type 'gpt2', whose size a plan does not know; it knows llama"):
        Shape.of_config({"model_type": "gpt2"}, "x")
    with pytest.raises(UserError, match=r"its config.json lacks 'hidden_size', which a plan needs"):
        Shape.of_config({"model_type": "llama", "num_attention_heads": 2}, "x")
