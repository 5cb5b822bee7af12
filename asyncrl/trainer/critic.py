"""The value model of PPO: the policy's architecture and first weights, with one number per token for a head."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from asyncrl.recipe.schema import Recipe
from asyncrl.trainer.optimizer import Optimizer
from asyncrl.trainer.packing import PackedBatch


class Critic:
    """`model` becomes the critic's own: its output head is replaced by one of width 1, zero at first."""

    def __init__(
        self, model: torch.nn.Module, recipe: Recipe, hidden: Callable[[torch.nn.Module, PackedBatch], torch.Tensor]
    ) -> None:
        head = model.get_output_embeddings()
        device = head.weight.device
        value = torch.nn.Linear(head.in_features, 1, bias=False, device=device, dtype=torch.float32)
        torch.nn.init.zeros_(value.weight)
        model.set_output_embeddings(value)
        self.model, self.hidden = model, hidden
        self.learning_rate = recipe.trainer.critic_learning_rate
        self.max_grad_norm = recipe.trainer.max_grad_norm
        self.optimizer = Optimizer(model, self.learning_rate, recipe.trainer.optimizer, prefix="critic.")

    def values(self, batch: PackedBatch) -> torch.Tensor:
        """Value before each trained token, float32 [N]."""
        hidden = self.hidden(self.model, batch)
        return self.model.get_output_embeddings()(hidden.float())[:, 0]

    def update(self, batches: list[PackedBatch]) -> float:
        """One optimizer step towards the column `returns`; the loss, half the mean squared error over tokens."""
        num_tokens = max(sum(len(b.targets) for b in batches), 1)
        total = 0.0
        self.model.train()
        self.optimizer.zero_grad()
        for batch in batches:
            loss = 0.5 * (self.values(batch) - batch.columns["returns"]).square().sum() / num_tokens
            loss.backward()
            total += float(loss.detach())
        if math.isfinite(self.optimizer.clip(self.max_grad_norm)):
            self.optimizer.step(self.learning_rate)
        return total
