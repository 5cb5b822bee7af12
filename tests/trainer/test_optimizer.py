"""AdamW as the trainer uses it."""

from __future__ import annotations

import torch

from asyncrl.trainer.optimizer import Optimizer

RATE, DECAY = 0.1, 0.1


def test_weight_decay_is_for_matrices_alone() -> None:
    """A step without a gradient leaves norms and biases as they are, and shrinks matrices by 1 - rate x decay."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Embedding(3, 4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ours = Optimizer(model, RATE, {"weight_decay": DECAY}, prefix="")
    ours.zero_grad()
    ours.step(RATE)
    for name, parameter in model.named_parameters():
        factor = 1 - RATE * DECAY if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
