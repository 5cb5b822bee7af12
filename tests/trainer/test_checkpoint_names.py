"""What travels has the names and values of the model's own checkpoint, whatever transformers joins when it loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from asyncrl.trainer.checkpoint_names import Part, checkpoint_parts
from asyncrl.trainer.sharding import cut, weight_shards
from asyncrl.weights.shards import assemble
from asyncrl.weights.staging import StagedWeights


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe", "olmoe", "mixtral"])
def test_a_mixture_travels_as_its_checkpoint(mixture: Callable[[str], Path], family: str) -> None:
    folder = mixture(family)
    staged = StagedWeights(
        weight_shards(AutoModelForCausalLM.from_pretrained(folder)), torch.float32, torch.device("cpu")
    )
    staged.copy()
    stored = load_file(folder / "model.safetensors")
    sent = dict(assemble(zip(staged.shards, staged.views, strict=True)))
    assert sent.keys() == stored.keys()
    assert all(torch.equal(sent[name], stored[name]) for name in stored)


def test_what_two_ranks_hold_is_put_together() -> None:
    """Whatever the row that divides a parameter of three experts, each of which two tensors are made from."""
    whole = torch.arange(3 * 4 * 5.0)
    parts = [
        Part(f"{e}.{half}", (2, 5), 20 * e + 10 * i, 20 * e + 10 * (i + 1))
        for e in range(3)
        for i, half in enumerate("ab")
    ]
    for row in range(0, 61, 5):
        ranks = [cut(*bounds, parts) for bounds in ((0, row), (row, 60))]
        assert [s.name for s in ranks[0]] == [s.name for s in ranks[1]]
        flats = [whole[:row], whole[row:]]
        shards = []
        for own, flat in zip(ranks, flats, strict=True):
            shards += zip(own, flat.split([s.num_elements for s in own]), strict=True)
        found = dict(assemble(shards))
        assert torch.equal(torch.stack([found[p.name] for p in parts]).flatten(), whole)


def test_a_model_of_ones_own_keeps_its_names() -> None:
    assert checkpoint_parts(torch.nn.Linear(3, 2), {"weight": (2, 3)}) == {"weight": [Part("weight", (2, 3), 0, 6)]}


def test_what_is_no_run_of_elements_keeps_its_name(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """A checkpoint that has a matrix transposed, and one whose conversion asks for real sizes."""
    model, shapes = AutoModelForCausalLM.from_pretrained(tiny_model), {"a": (4, 6), "b": (4, 6)}
    where = "transformers.core_model_loading.revert_weight_conversion"
    monkeypatch.setattr(where, lambda _, named: {"x": named["a"].T.contiguous(), "y": named["b"]})
    parts = checkpoint_parts(model, shapes)
    assert parts == {"a": [Part("a", (4, 6), 0, 24)], "b": [Part("y", (4, 6), 0, 24)]}

    def fails(*_: object) -> None:
        raise RuntimeError("shape '[2, 3]' is invalid")

    monkeypatch.setattr(where, fails)
    assert checkpoint_parts(model, shapes)["b"] == [Part("b", (4, 6), 0, 24)]
