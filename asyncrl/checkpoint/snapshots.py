"""Snapshots of the trainer's state in the memory of other processes: quicker to go back to than a disk.

    store   trainer --flatten--> buffer --split--> n shards + their parity --one each--> n + 1 holder actors
    load    the first n shards to arrive --rebuild, join--> buffer --unflatten--> tensors

Any one holder may die; Ray starts an empty one in its place, and the next store is whole again. `create` belongs in
the process that outlives the trainer: an actor dies with the process that started it. Waits for: holders. Unblocked
by: their answer; their death; the deadline.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from torch import Tensor

from asyncrl.checkpoint.holder import Holder, Shard, crc
from asyncrl.checkpoint.parity import SnapshotLost, flatten, join, parity, rebuild, split, unflatten
from asyncrl.errors import DeadlineExceeded
from asyncrl.processes.crossing import crossing
from asyncrl.processes.nodes import ALMOST_NO_CPU

logger = logging.getLogger(__name__)

_HolderActor = ray.remote(num_cpus=ALMOST_NO_CPU, max_restarts=-1)(crossing(Holder))
_MAX_SHARDS_UNDER_WAY = 2
"""Bounds what a store takes of Ray's object store; two, so that one is copied in while one is copied out."""


@dataclass
class Snapshots:
    """Handles of the holders, the one of the parity shard last. May be sent to other processes."""

    holders: list[ActorHandle]
    deadline_s: float
    """The longest that each of the calls takes."""

    @property
    def num_shards(self) -> int:
        """Data shards, parity not counted."""
        return len(self.holders) - 1

    def store(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Give every holder its shard; one that is dead or silent is logged, and made up for by parity.

        Later versions held are dropped. Raises SnapshotLost if more than one holder did not take its shard.
        """
        until = time.monotonic() + self.deadline_s
        layout, buffer = flatten(tensors)
        shards = split(buffer, self.num_shards)
        attempt = uuid.uuid4().hex
        taken: set[int] = set()
        pending: dict[Any, int] = {}
        for index, holder in enumerate(self.holders):
            if len(pending) == _MAX_SHARDS_UNDER_WAY:
                taken |= {index for index, answer in _answers(pending, until, 1) if answer}
                if len(pending) == _MAX_SHARDS_UNDER_WAY:
                    break
            data = shards[index] if index < self.num_shards else parity(shards)
            pending[holder.put.remote(version, Shard(attempt, index, data, crc(data), layout))] = index
        taken |= {index for index, answer in _answers(pending, until) if answer}
        lost = sorted(set(range(len(self.holders))) - taken)
        if len(lost) > 1:
            raise SnapshotLost(
                f"snapshot {version}: holders {lost} did not take their shard in {self.deadline_s:.0f} s; "
                "earlier snapshots and the checkpoints on disk remain"
            )
        if lost:
            logger.warning("snapshot %d: holder %d did not take its shard; parity makes up for it", version, lost[0])

    def latest(self, most: int) -> int | None:
        """The newest version up to `most` of which at most one shard is missing; None if there is none."""
        held: Counter[tuple[int, str]] = Counter()
        for _, versions in self._ask("versions"):
            held.update((versions or {}).items())
        whole = [version for (version, _), count in held.items() if count >= self.num_shards]
        return max((version for version in whole if version <= most), default=None)

    def load(self, version: int) -> dict[str, Tensor]:
        """The tensors as they were stored, views of one buffer. Raises SnapshotLost if two shards are missing."""
        attempts: dict[str, dict[int, Shard]] = defaultdict(dict)
        for index, shard in self._ask("get", version):
            if shard is not None:
                attempts[shard.attempt][index] = shard
                if len(attempts[shard.attempt]) == self.num_shards:
                    break
        found = max(attempts.values(), key=len, default={})
        try:
            data = rebuild([found[i].data if i in found else None for i in range(len(self.holders))])
        except SnapshotLost as error:
            raise SnapshotLost(f"snapshot {version}: {error}") from None
        return unflatten(next(iter(found.values())).layout, join(data))

    def wait_started(self) -> None:
        """Raises DeadlineExceeded, saying how many, if not every holder answers."""
        num_started = sum(bool(answer) for _, answer in self._ask("__ray_ready__"))
        if num_started < len(self.holders):
            raise DeadlineExceeded(
                f"only {num_started} of {len(self.holders)} snapshot holders started in {self.deadline_s:.0f} s; "
                "see `ray status` for what the cluster lacks"
            )

    def _ask(self, method: str, *arguments: Any) -> Iterator[tuple[int, Any]]:
        until = time.monotonic() + self.deadline_s
        calls = {getattr(holder, method).remote(*arguments): index for index, holder in enumerate(self.holders)}
        return _answers(calls, until)


def create(num_shards: int, deadline_s: float) -> Snapshots:
    """Start `num_shards` + 1 empty holders, on different nodes if there are. DeadlineExceeded if one does not start."""
    holders = [_HolderActor.options(scheduling_strategy="SPREAD").remote() for _ in range(num_shards + 1)]
    snapshots = Snapshots(holders, deadline_s)
    snapshots.wait_started()
    return snapshots


def _answers(calls: dict[Any, int], until: float, count: int | None = None) -> Iterator[tuple[int, Any]]:
    """(index, answer) of each call as it ends, or of the first `count`; they leave `calls`. Ends at `until`.

    The answer of a dead holder is None.
    """
    for _ in range(len(calls) if count is None else count):
        done, _ = ray.wait(list(calls), num_returns=1, timeout=max(0.0, until - time.monotonic()))
        if not done:
            return
        index, answer = calls.pop(done[0]), None
        try:
            answer = ray.get(done[0])
        except RayError as error:
            logger.warning("snapshot holder %d: %s", index, str(error).splitlines()[0])
        yield index, answer
