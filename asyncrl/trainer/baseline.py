"""What a reward is compared with where a group has nobody to compare: the batch, or what its task has earned before.

Of a task: n <- rho n + 1, v <- v + (R - v)/n, for each reward in the order of the batches (single-stream policy
optimization, arXiv:2509.13232, whose rho follows the KL since the task's last visit; here it is constant, and rewards
need not lie in [0, 1]). A task begins at the mean of its first batch with n = 1, where the paper samples beforehand. v
is that of the batches before, so that no reward is compared with itself. What is held here follows from the trainer's
batches alone, and is part of its checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

_KEYS, _NUMBERS, _AGENTS = "baseline.keys", "baseline.numbers", "baseline.agents"
Scored = tuple[int, str, torch.Tensor]
"""Row of the data, agent, rewards float32 [n]."""


class Baseline:
    """Of each agent its own."""

    def __init__(self, kind: Literal["none", "batch", "task"], rho: float) -> None:
        self.kind, self.rho = kind, rho
        self._tasks: dict[tuple[int, str], tuple[float, float]] = {}
        """n and v by row and agent."""

    def of_batch(self, scored: Sequence[Scored]) -> list[float]:
        """That of each group of a batch, which is learnt from afterwards."""
        if self.kind == "none":
            return [0.0] * len(scored)
        agents = {agent for _, agent, _ in scored}
        means = {a: float(torch.cat([r for _, agent, r in scored if agent == a]).double().mean()) for a in agents}
        if self.kind == "batch":
            return [means[agent] for _, agent, _ in scored]
        for row, agent, _ in scored:
            self._tasks.setdefault((row, agent), (1.0, means[agent]))
        found = [self._tasks[row, agent][1] for row, agent, _ in scored]
        for row, agent, rewards in scored:
            for reward in rewards.tolist():
                n, v = self._tasks[row, agent]
                n = self.rho * n + 1
                self._tasks[row, agent] = n, v + (reward - v) / n
        return found

    def state(self) -> dict[str, torch.Tensor]:
        if not self._tasks:
            return {}
        agents = list(dict.fromkeys(agent for _, agent in self._tasks))
        return {
            _KEYS: torch.tensor([(row, agents.index(agent)) for row, agent in self._tasks]),
            _NUMBERS: torch.tensor(list(self._tasks.values()), dtype=torch.float64),
            _AGENTS: torch.frombuffer(bytearray(json.dumps(agents).encode()), dtype=torch.uint8),
        }

    def restore(self, tensors: Mapping[str, Any]) -> None:
        """Inverse of `state`."""
        self._tasks.clear()
        if _KEYS not in tensors:
            return
        agents = json.loads(tensors[_AGENTS].numpy().tobytes())
        for (row, agent), (n, v) in zip(tensors[_KEYS].tolist(), tensors[_NUMBERS].tolist(), strict=True):
            self._tasks[row, agents[agent]] = n, v
