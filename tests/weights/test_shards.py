"""What ranks hold in whatever layout is put together again: rows, columns, blocks, runs of elements."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asyncrl.weights.shards import Held, Shard, assemble
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.transport import SenderConfig, open_sender, receiver_class

CPU, SHAPE = torch.device("cpu"), (4, 6)
WHOLE = torch.arange(24.0).view(SHAPE)
LAYOUTS = {
    "rows": [((0, 0), (1, 6)), ((1, 0), (3, 6))],
    "columns": [((0, 4), (4, 2)), ((0, 0), (4, 4))],
    "blocks": [((0, 0), (2, 3)), ((2, 3), (2, 3)), ((0, 3), (2, 3)), ((2, 0), (2, 3))],
    "runs": [((0,), (7,)), ((7,), (17,))],
    "one has nothing": [((0, 0), SHAPE), ((0, 0), (0, 6))],
}


def part(offset: tuple[int, ...], size: tuple[int, ...]) -> torch.Tensor:
    found = WHOLE if len(offset) == 2 else WHOLE.flatten()
    for dimension, (first, length) in enumerate(zip(offset, size, strict=True)):
        found = found.narrow(dimension, first, length)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_of_any_layout_travel(layout: str, tmp_path: Path) -> None:
    """By a transport, from the staged copy of each rank: each has a shard of `a`, and `b` is whole on one."""
    endpoints, copies, sizes, senders = [], [], [], []
    for rank, (offset, size) in enumerate(LAYOUTS[layout]):
        b = Shard("b", (2,), (0,), (2 if rank == 1 else 0,))
        weights = [
            Held(part(offset, size), (Shard("a", SHAPE, offset, size),)),
            Held(torch.tensor([5.0, 6.0])[: b.num_elements], (b,)),
        ]
        staged = StagedWeights(weights, torch.float32, CPU)
        staged.copy()
        sender = open_sender(SenderConfig("disk", rank, "127.0.0.1", 5.0, "float32", tmp_path), staged)
        endpoints.append(sender.endpoint())
        copies.append(sender.copy(0, staged))
        sizes.append(staged.flat.numel())
        senders.append(sender)
    receiver = receiver_class("asyncrl.weights.transports.disk")(endpoints, 1, 2, 5.0)
    arrived = []
    for endpoint, flat in zip(endpoints, receiver.receive(copies, sizes, torch.float32), strict=True):
        shards = [Shard.of_wire(shard) for shard in endpoint["shards"]]
        arrived += zip(shards, flat.split([shard.num_elements for shard in shards]), strict=True)
    found = dict(assemble(arrived))
    assert torch.equal(found["a"], WHOLE)
    assert found["b"].tolist() == [5.0, 6.0]


def test_what_has_not_arrived_is_named() -> None:
    with pytest.raises(ValueError, match="of 1 parameters not all has arrived, such as a"):
        list(assemble([(Shard("a", SHAPE, (0, 0), (4, 4)), torch.zeros(16))]))
