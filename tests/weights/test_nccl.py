"""What of our end of vLLM's NCCL transfer needs no GPU."""

from __future__ import annotations

from typing import Any

from asyncrl.plan.memory import TRANSFER_BUFFERS
from asyncrl.weights import nccl


def test_both_ends_take_the_buffers_that_are_planned() -> None:
    engine = nccl.trainer_engine(0, nccl.SyncClient(None), nccl.StagedSource([[]], 0, None))
    told: dict[str, Any] = nccl.invitation(engine, bytes(128), 2)
    for end in (vars(engine), told):
        assert end["packed_buffer_size_bytes"] * end["packed_num_buffers"] == TRANSFER_BUFFERS
