"""What an engine makes of the names that it is sent: without an engine, on a loader that keeps what it is given."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from asyncrl.weights.host import lacking, load_by_kind

NAMES = ["embed.weight", "layers.0.q.weight", "layers.0.q.bias", "layers.1.q.weight", "layers.1.q.bias", "norm.weight"]
ONE = torch.ones(1)


class Loader:
    """Loads all but biases, of which it says nothing, as vLLM's does."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str] | None:
        names = [name for name, _ in weights]
        self.calls.append(names)
        return {f"engine.{name}" for name in names if not name.endswith("bias")}


def test_every_weight_is_loaded_once_in_order_and_the_first_of_each_kind_by_itself() -> None:
    loader = Loader()
    loaded, unused, sent = load_by_kind(loader, ((name, ONE) for name in NAMES))
    assert loaded == {f"engine.{name}" for name in NAMES if not name.endswith("bias")}
    assert unused == ["layers.0.q.bias"]
    assert sent == [name for call in loader.calls for name in call] == NAMES
    assert [call for call in loader.calls if len(call) > 1] == [["layers.1.q.weight", "layers.1.q.bias"]]


def test_a_model_that_does_not_say_what_it_loaded_is_not_judged() -> None:
    assert load_by_kind(lambda weights: list(weights) and None, [(name, ONE) for name in NAMES])[:2] == (None, [])


@pytest.mark.parametrize("left_out", ["q_proj", "k_proj", "up_proj"])
def test_a_part_of_a_fused_weight_that_does_not_come_is_named(left_out: str) -> None:
    fused = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    paths = {"attn": fused["qkv_proj"], "mlp.experts.3": fused["gate_up_proj"]}
    names = [f"layers.1.{path}.{member}.weight" for path, members in paths.items() for member in members]
    assert lacking([*names, "layers.1.attn.q_proj.bias"], fused) == []
    (missing,) = (name for name in names if left_out in name)
    assert lacking([name for name in names if name != missing], fused) == [missing]
