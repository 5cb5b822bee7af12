"""Weights over gloo, between any two CPU processes: each rank of the trainer broadcasts its buffer to all workers.

vLLM's own `nccl` engine needs GPUs; between CPUs this takes its place. A group has one rank of the trainer, as its
rank 0, and every engine worker. Every collective has a deadline.

Both sides keep what went over last, so only what has changed is sent where that is less: at the small steps of RL most
weights stay the same in bfloat16. A push is the number of changed elements (-1: all follow), their places and values,
and last a MAC of all of it (keyed BLAKE3, whose key came through Ray): what others have put in its place is not loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from blake3 import blake3
from torch.distributed import BroadcastOptions, ProcessGroupGloo

from asyncrl.cluster.rendezvous import Rendezvous, SealedStore, open_rendezvous, own_address, require_members
from asyncrl.weights.flat import FlatSender
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.transport import SenderConfig

# Everyone who is to join is up and has been called: who is not here soon has died, and those who wait for it stand
# still meanwhile.
_JOIN_S = 60.0
_ALL = -1
_WORTH_IT = 0.5
"""Of all bytes: finding what has changed takes time too."""


class Sender(FlatSender):
    """A rank of the trainer: listens at the address of its node."""

    group: ProcessGroupGloo | None = None
    _sent: torch.Tensor | None = None

    def __init__(self, config: SenderConfig, staged: StagedWeights) -> None:
        super().__init__(config, staged)
        self._meeting, self._store = open_rendezvous(config.address, config.timeout_s)
        self._seal = _Seal(self._meeting.key)

    def reach(self) -> dict[str, Any]:
        return self._meeting.to_wire()

    def join(self, world_size: int) -> None:
        self.group = join_group(self._meeting, self._store, 0, world_size, self._config.timeout_s)

    def copy(self, version: int, staged: StagedWeights) -> Any:
        """Finds out what there is to send; what is staged is as it is until that is done."""
        self._places = self._changed(staged.flat)

    def send(self, staged: StagedWeights) -> int:
        assert self.group is not None
        flat, places = staged.flat, self._places
        parts = [flat] if places is None else [places, flat[places]] if len(places) else []
        count = torch.tensor([_ALL if places is None else len(places)])
        sent, self._sent = self._sent, None  # if this fails, nobody knows what has arrived
        under_way = [_broadcast(self.group, part) for part in (count, *parts)]
        mac = self._seal.of([count, *parts])
        _wait([*under_way, _broadcast(self.group, mac)])
        if sent is None:
            sent = flat.clone()
        elif places is None:
            sent.copy_(flat)
        else:
            sent[places] = flat[places]
        self._sent = sent
        self._seal.done += 1
        return sum(part.nbytes for part in parts)

    def _changed(self, flat: torch.Tensor) -> torch.Tensor | None:
        """Places of the elements that differ from those sent last; None if to send all is less."""
        if self._sent is None:
            return None
        bits = {2: torch.int16, 4: torch.int32}[flat.itemsize]
        differs = flat.view(bits) != self._sent.view(bits)
        index = _index_dtype(flat)
        if int(differs.count_nonzero()) * (index.itemsize + flat.itemsize) > _WORTH_IT * flat.nbytes:
            return None
        return differs.nonzero().flatten().to(index)

    def close(self) -> None:
        if self.group is not None:
            self.group.abort()


class Receiver:
    """A worker: one group with each rank of the trainer."""

    def __init__(self, endpoints: list[dict[str, Any]], rank: int, world_size: int, timeout_s: float) -> None:
        # Kept: the page faults of new ones would cost more than the bytes.
        self._flats: list[torch.Tensor] = []
        places = [Rendezvous.of_wire(endpoint) for endpoint in endpoints]
        self._groups = [join_group(p, p.join(timeout_s), rank, world_size, timeout_s) for p in places]
        self._seals = [_Seal(place.key) for place in places]

    def receive(self, copies: list[Any], sizes: list[int], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Raises RuntimeError, before it yields them, for weights that the trainer did not send."""
        self._flats = self._flats or [torch.empty(size, dtype=dtype) for size in sizes]
        counts = [torch.empty(1, dtype=torch.int64) for _ in sizes]
        _wait([_broadcast(group, count) for group, count in zip(self._groups, counts, strict=True)])
        parts = [[*_parts(int(count), flat), _macs()] for flat, count in zip(self._flats, counts, strict=True)]
        coming = [[_broadcast(group, p) for p in own] for group, own in zip(self._groups, parts, strict=True)]
        ends = zip(self._flats, counts, parts, coming, self._seals, strict=True)
        for number, (flat, count, (*own, mac), work, seal) in enumerate(ends):
            _wait(work)
            if not torch.equal(mac, seal.of([count, *own])):
                raise RuntimeError(f"the weights that arrived are not those that rank {number} of the trainer sent")
            seal.done += 1
            if len(own) == 2:
                places, values = own
                flat[places] = values
            yield flat

    def close(self) -> None:
        for group in self._groups:
            group.abort()
        self._flats = []


class _Seal:
    """MACs of one push after another of one end, of which none stands for another."""

    done = 0
    """Pushes before this one."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, parts: list[torch.Tensor]) -> torch.Tensor:
        mac = blake3(self.done.to_bytes(8), key=self._key)
        for part in parts:
            mac.update(part.view(torch.uint8).numpy().data)
        return torch.tensor(list(mac.digest()), dtype=torch.uint8)


def _macs() -> torch.Tensor:
    """Where to receive one."""
    return torch.empty(blake3.digest_size, dtype=torch.uint8)


def join_group(place: Rendezvous, store: SealedStore, rank: int, world_size: int, timeout_s: float) -> ProcessGroupGloo:
    options = ProcessGroupGloo._Options()
    # By itself gloo listens at the address of the host's name.
    address = own_address(place.address)
    options._devices = [ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = timedelta(seconds=min(timeout_s, _JOIN_S))
    group = ProcessGroupGloo(store, rank, world_size, options)
    require_members(group, rank, place.key)
    store.close()
    group._set_default_timeout(timedelta(seconds=timeout_s))
    return group


def _parts(count: int, flat: torch.Tensor) -> list[torch.Tensor]:
    """What follows a count: where to receive it."""
    if count == _ALL:
        return [flat]
    if not 0 <= count <= len(flat):
        raise RuntimeError(f"{count} weights are announced, of {len(flat)} that there are")
    return [torch.empty(count, dtype=_index_dtype(flat)), torch.empty(count, dtype=flat.dtype)] if count else []


def _index_dtype(flat: torch.Tensor) -> torch.dtype:
    return torch.int32 if flat.numel() < 2**31 else torch.int64


def _broadcast(group: ProcessGroupGloo, tensor: torch.Tensor) -> Any:
    options = BroadcastOptions()
    options.rootRank = 0
    return group.broadcast([tensor], options)


def _wait(works: list[Any]) -> None:
    for work in works:
        work.wait()
