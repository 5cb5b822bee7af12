"""The value model of PPO: the policy's architecture and first weights, with one number per token for a head."""

from __future__ import annotations

import math

from asyncrl.recipe.schema import Recipe
from asyncrl.trainer.model import Values
from asyncrl.trainer.optimizer import Optimizer
from asyncrl.trainer.packing import PackedBatch
from asyncrl.trainer.ranks import ProcessGroup


class Critic:
    """Trains `values`; with several ranks they are sharded already."""

    def __init__(self, values: Values, recipe: Recipe, process_group: ProcessGroup) -> None:
        self.values, self.process_group = values, process_group
        self.learning_rate = recipe.trainer.critic_learning_rate
        self.max_grad_norm = recipe.trainer.max_grad_norm
        self.optimizer = Optimizer(values.model, self.learning_rate, recipe.trainer.optimizer, "critic.", values.dtype)

    def update(self, batches: list[PackedBatch], idle: list[PackedBatch]) -> float:
        """One optimizer step towards the column `returns`; this rank's part of the loss, half the mean squared error
        over all tokens. `idle`: passes that only keep the other ranks company."""
        num_tokens = max(self.process_group.sum([sum(len(b.targets) for b in batches)])[0], 1.0)
        total = 0.0
        self.values.train()
        self.optimizer.zero_grad()
        for batch in batches:
            loss = 0.5 * (self.values(batch) - batch.columns["returns"]).square().sum() / num_tokens
            self.process_group.backward(self.optimizer.scaled(loss))
            total += float(loss.detach())
        for batch in idle:
            self.process_group.backward(0.0 * self.values(batch).sum())
        if math.isfinite(self.optimizer.clip(self.max_grad_norm)):
            self.optimizer.step(self.learning_rate)
        else:
            self.optimizer.skip()
        return total
