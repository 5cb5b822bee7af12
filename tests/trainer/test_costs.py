"""What a step costs, in counts that are the same on every machine: they fail when something takes a slow path.

Times would only say how busy the machine was. Who makes a step cheaper lowers the figure; who must make it dearer
raises it, and says why.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import CPU, learner, recipe
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from asyncrl.rollout.trajectory import Group, Trajectory
from asyncrl.trainer import attention
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.model import takes_trees
from asyncrl.trainer.sharding import weight_shards
from asyncrl.weights.staging import Staging

NUM_GROUPS, NUM_ROLLOUTS, PROMPT, NEW, BUDGET = 4, 8, 33, 17, 512
COSTS = {
    "forward tokens for each token of the tree": 1.0,
    "rows": 2,
    "calls of attention for each layer and row": 1,
    "products, against 6 for each weight and token": 1.54,
    "operations for each layer and row": 591,
    "bytes copied for each token": 17_100,
}
"""Measured on the batch below; a step may cost a tenth more."""
_COPIES = {"copy_", "_to_copy", "clone", "cat", "index", "index_select", "index_put_", "repeat", "constant_pad_nd"}


class Operations(TorchDispatchMode):
    """Counts torch's operations, and the bytes that those of them write which only copy."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.copied_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if name in _COPIES:
            self.copied_bytes += out.nbytes
        return out


def batch() -> list[Group]:
    """Groups as in recipes/arithmetic.yaml: short prompts and answers, some of which begin alike."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(NUM_GROUPS):
        prompt, answers = rng.integers(3, 200, PROMPT), rng.integers(3, 200, (NUM_ROLLOUTS, NEW))
        answers[1::2, : NEW // 2] = answers[::2, : NEW // 2]
        trajectories = []
        for i, answer in enumerate(answers):
            tokens = np.concatenate([prompt, answer]).astype(np.int32)
            mask = np.arange(len(tokens)) >= PROMPT
            versions, none = np.where(mask, 0, -1).astype(np.int32), np.zeros(len(tokens), np.float32)
            trajectories.append(Trajectory(tokens, versions, none, mask, float(i % 2), "stop"))
        made.append(Group(number, 0, number, tuple(trajectories)))
    return made


def tokens_of_the_tree(groups: list[Group]) -> int:
    """Beginnings that differ, each counted once."""
    texts = [t.tokens.tolist() for group in groups for t in group.trajectories]
    return len({tuple(text[: n + 1]) for text in texts for n in range(len(text))})


def cost_of_a_step(ours: Learner, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    num_attention = 0
    blockwise = attention._Blockwise.forward

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal num_attention
        num_attention += 1
        return blockwise(*arguments)

    monkeypatch.setattr(attention._Blockwise, "forward", staticmethod(counted))
    num_rows = 0

    def row(*_: object) -> None:
        nonlocal num_rows
        num_rows += 1

    ours.policy.register_forward_pre_hook(row)
    operations = Operations()
    with FlopCounterMode(display=False) as products, operations:
        report = ours.step(batch(), 0, 0)
    num_layers = ours.model.config.num_hidden_layers
    num_weights = sum(p.numel() for p in ours.model.parameters())
    tokens = report.tokens_forward
    return {
        "forward tokens for each token of the tree": tokens / tokens_of_the_tree(batch()),
        "rows": num_rows,
        "calls of attention for each layer and row": num_attention / (num_layers * num_rows),
        "products, against 6 for each weight and token": products.get_total_flops() / (6 * num_weights * tokens),
        "operations for each layer and row": operations.calls.total() / (num_layers * num_rows),
        "bytes copied for each token": operations.copied_bytes / tokens,
    }


def test_a_step_costs_what_it_did(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = learner(tiny_model, recipe(trainer={"precision": "fp32", "tokens_per_microbatch": BUDGET}))
    assert takes_trees(ours.model)
    found = cost_of_a_step(ours, monkeypatch)
    dearer = {name: (cost, COSTS[name]) for name, cost in found.items() if cost > 1.1 * COSTS[name]}
    assert not dearer


def test_trajectories_one_by_one_are_dearer(tiny_model: Path) -> None:
    """The guard can fail: this is the slow path that was once taken in silence."""
    ours = learner(tiny_model, recipe(trainer={"precision": "fp32", "tokens_per_microbatch": BUDGET}))
    ours.packs = False
    group = batch()[:1]
    assert ours.step(group, 0, 0).tokens_forward > 2 * tokens_of_the_tree(group)


def test_a_push_copies_every_weight_once(tiny_model: Path) -> None:
    model = learner(tiny_model).model
    num_weights = sum(p.numel() for p in model.parameters())
    staging = Staging(weight_shards(model), 0, torch.bfloat16, CPU)
    for version in range(3):
        operations = Operations()
        with operations:
            staging.send(version)
            staging.before_change(-1, deadline_s=1.0)
            staging.changed(version + 1)
        assert operations.copied_bytes == 2 * num_weights
