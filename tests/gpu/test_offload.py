"""The optimizer's states in host memory: the same weights as with all on the GPU, bit for bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_learner import groups, recipe

from asyncrl.checkpoint import files
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.model import load_model

BATCHES = [groups(seed, [[1.0, 0.0, 0.5], [0.0, 0.25, 1.0]], version=seed - 1) for seed in range(1, 4)]


def learner(model: Path, device: torch.device, **optimizer: Any) -> Learner:
    keys = {"precision": "bf16", "tokens_per_microbatch": 128, "gpus_per_rank": 1, "optimizer": optimizer}
    r = recipe(trainer=keys)
    return Learner(partial(load_model, str(model), r, device), r, device)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_offloaded_states(tiny_model: Path, tmp_path: Path, device: torch.device, name: str) -> None:
    plain, ours = learner(tiny_model, device, name=name), learner(tiny_model, device, name=name, offload=True)
    for step in (0, 1):
        plain.step(BATCHES[step], step, 0)
        ours.step(BATCHES[step], step, 0)
    large = {key: t for key, t in ours.state().items() if ".exp_avg" in key or ".momentum_buffer" in key}
    assert large
    assert all(tensor.device.type == "cpu" for tensor in large.values())
    assert all(tensor.is_pinned() for tensor in large.values()) or device.type == "cpu"
    files.write({key: tensor.cpu() for key, tensor in ours.state().items()}, tmp_path, 0)
    again = learner(tiny_model, device, name=name, offload=True)
    again.restore(files.read(tmp_path))
    for one in (plain, ours, again):
        one.step(BATCHES[2], 2, 0)
    whole = plain.state()
    for one in (ours, again):
        assert all(torch.equal(tensor.cpu(), whole[key].cpu()) for key, tensor in one.state().items())
