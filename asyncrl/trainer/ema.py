"""A running mean of the trained weights, which is often better than the last ones (Polyak & Juditsky 1992; exponential
as in arXiv:1502.03509).

    mean <- decay · mean + (1 - decay) · weights    after each training step, from the initial weights on

In fp32, of what this rank holds. Nothing is trained or sampled with it: it is exported beside the model.
Of adapters it is the mean of A and the mean of B, an adapter of their rank. The mean of the products BA is another
matrix, by Cov(B, A) along the way, and its rank grows with the steps.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from asyncrl.trainer.sharding import fill, held, own_rows

logger = logging.getLogger(__name__)

PREFIX = "ema."
"""Of its tensors in a checkpoint."""


class Ema:
    """Of the parameters `named`, whose masters in fp32 these are."""

    def __init__(self, named: Mapping[str, torch.Tensor], decay: float) -> None:
        self.decay, self._weights = decay, dict(named)
        self.means = {name: weight.detach().clone() for name, weight in named.items()}

    @torch.no_grad()
    def update(self) -> None:
        rows = [[own_rows(tensor)[1] for tensor in tensors.values()] for tensors in (self.means, self._weights)]
        torch._foreach_lerp_(*rows, weight=1 - self.decay)

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors themselves, not copies; of one that is sharded what this rank is the first to hold."""
        tensors: dict[str, torch.Tensor] = {}
        for name, mean in self.means.items():
            tensors |= held(f"{PREFIX}{name}", mean)
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Any]) -> None:
        """Inverse of `state`, bit for bit. A checkpoint without a mean has it begin at its weights, which have been
        restored before."""
        if not any(name.startswith(PREFIX) for name in tensors):
            logger.warning("trainer.ema: the checkpoint has no running mean of the weights; one begins with them")
            for name, mean in self.means.items():
                mean.copy_(self._weights[name])
            return
        for name, mean in self.means.items():
            fill(mean, tensors[f"{PREFIX}{name}"])


def as_weights(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The means in a state, under the names that the weights have there."""
    return {f"model.{name.removeprefix(PREFIX)}": t for name, t in tensors.items() if name.startswith(PREFIX)}
