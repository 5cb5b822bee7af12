"""From the samples of a step to what passes the model: optimizer steps, and each rank's micro-batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from asyncrl.trainer.balance import split
from asyncrl.trainer.objective import Counts
from asyncrl.trainer.packing import PackedBatch, TrainSample, pack
from asyncrl.trainer.ranks import ProcessGroup


@dataclass(frozen=True)
class Passes:
    """Samples, packed for this rank."""

    batches: list[PackedBatch]
    """This rank's micro-batches."""
    idle: list[PackedBatch]
    """Passes of which nothing counts: every rank makes as many, for they exchange parameters in each."""
    shares: list[list[list[TrainSample]]]
    """The micro-batches of each rank."""


@dataclass(frozen=True)
class Rows:
    """Demonstrations that an update learns besides (`sft.py`)."""

    passes: Passes
    num_tokens: int
    """Those that are learnt, over all ranks."""


@dataclass(frozen=True)
class Update:
    """One mini-batch, packed; and what it has when its groups without a gradient are counted too."""

    batches: list[PackedBatch]
    idle: list[PackedBatch]
    """This and the one before: as `Passes` has them."""
    everyone: list[PackedBatch]
    """All ranks' micro-batches in order, if the objective looks at the mini-batch as a whole; else this rank's."""
    sizes: list[int]
    """Trained tokens of each rank in `everyone`."""
    num_trained: int
    """Trajectories that pass a model, over all ranks."""
    counts: Counts
    rows: Rows | None = None

    @property
    def num_passes(self) -> int:
        return len(self.batches) + len(self.idle)


@dataclass(frozen=True)
class Packer:
    """Divides samples among ranks and micro-batches."""

    process_group: ProcessGroup
    device: torch.device
    width: int | None
    """Of the model; None: it takes one trajectory at a time."""
    most_tokens: int
    """In a micro-batch."""

    def passes(self, samples: list[TrainSample]) -> Passes:
        shares = self._shares(samples)
        mine = shares[self.process_group.rank]
        own = [pack(part, self.device) for part in mine if part]
        num_idle = len(mine) - len(own)
        return Passes(own, [pack(samples[:1], self.device)] * num_idle if num_idle else [], shares)

    def rows(self, samples: list[TrainSample]) -> Rows | None:
        """None: there are none."""
        return Rows(self.passes(samples), sum(int(s.mask.sum()) for s in samples)) if samples else None

    def everyone(self, passes: Passes) -> list[list[PackedBatch]]:
        """The micro-batches of each rank, this one's as they are in `passes`."""
        packed = [[pack(part, self.device) for part in share if part] for share in passes.shares]
        packed[self.process_group.rank] = passes.batches
        return packed

    def _shares(self, samples: Sequence[TrainSample]) -> list[list[list[TrainSample]]]:
        size = self.process_group.size
        if self.width is not None:
            return split(list(samples), self.most_tokens, self.width, size)
        longest_first = sorted(samples, key=lambda s: -len(s.trajectory.tokens))
        number = -(-len(samples) // size)
        rows = [longest_first[i * size : (i + 1) * size] for i in range(number)]
        return [[row[rank : rank + 1] for row in rows] for rank in range(size)]
