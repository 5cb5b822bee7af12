"""Between GPUs, over NCCL: the one transport whose two ends are vLLM's own.

Rank 0 sends; the other ranks hand it what they hold, a parameter at a time.
"""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from asyncrl.errors import RunFailed
from asyncrl.weights.flat import report, side_by_side
from asyncrl.weights.host import forget_half_a_push
from asyncrl.weights.shards import Shard, assemble
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.transport import SenderConfig
from asyncrl.weights.update import PublishReport, Replicas, WeightUpdate

BUFFER_BYTES, NUM_BUFFERS = 2**28, 2
"""On each side, outside of what vLLM counts as the KV cache's; the last tensor of a buffer may reach over its end.
vLLM's own 1 GiB saves nothing: a buffer of this size takes NCCL milliseconds."""


class Sender:
    def __init__(self, config: SenderConfig, staged: StagedWeights) -> None:
        self._config, self._staged = config, staged
        self._engine: Any = None

    def endpoint(self) -> Any:
        return {"shards": [asdict(shard) for shard in self._staged.shards]}

    def connect(self, replicas: Replicas | None, num_workers: int, endpoints: list[Any]) -> None:
        shards = [[Shard.of_wire(shard) for shard in endpoint["shards"]] for endpoint in endpoints]
        self._source = StagedSource(shards, self._config.rank, self._config.group)
        self._client = SyncClient(replicas)
        self._engine = trainer_engine(self._config.rank, self._client, self._source)
        if replicas is None:
            return
        world_size, unique_id = 1 + num_workers, new_id()
        told = invitation(self._engine, unique_id, world_size)
        device = torch.accelerator.current_device_index()
        _, self._engine.model_update_group = side_by_side(
            lambda: replicas.join(told), lambda: join(unique_id, world_size, device)
        )

    def copy(self, version: int, staged: StagedWeights) -> Any:
        return None

    def publish(self, version: int, staged: StagedWeights, copies: list[Any]) -> PublishReport:
        began = time.perf_counter()
        self._client.version, self._source.staged = version, staged
        self._engine.send_weights()
        return report(version, began, self._client.pauses, staged.flat.nbytes)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()


class StagedSource(WeightSource):
    """vLLM's view of the staged weights, set anew before each push. Every rank of the trainer has one.

    With several, each parameter is gathered on rank 0 just before it is sent, in `group`, which nothing else uses.
    """

    staged: StagedWeights

    def __init__(self, shards: list[list[Shard]], rank: int, group: Any) -> None:
        """shards: of each rank, names in the same order."""
        self._shards, self._rank, self._group = shards, rank, group

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(shard.name, self.staged.flat.dtype, shard.shape) for shard in self._shards[0]]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for index, view in enumerate(self.staged.views):
            parts = [of_rank[index] for of_rank in self._shards]
            flats = [view] if len(parts) == 1 else self._gather([part.num_elements for part in parts], view)
            if flats:
                yield from assemble(zip(parts, flats, strict=True))
            else:
                # The other ranks only take part: what they give is not sent.
                yield parts[0].name, view

    def _gather(self, sizes: list[int], view: torch.Tensor) -> list[torch.Tensor]:
        """Of all ranks, on rank 0."""
        padded = view.new_zeros(max(sizes))
        padded[: view.numel()] = view
        received = [torch.empty_like(padded) for _ in sizes] if self._rank == 0 else None
        torch.distributed.gather(padded, received, dst=0, group=self._group)
        return [part[:size] for part, size in zip(received, sizes, strict=True)] if received else []


class SyncClient:
    """vLLM's four control calls, mapped to one call per replica and push, which pauses and resumes by itself."""

    def __init__(self, replicas: Replicas | None) -> None:
        self.replicas = replicas
        self.version = -1
        self.pauses: Mapping[str, float] = {}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Nothing: `Sender.connect` has called who joins."""

    def start_weight_update(self) -> None:
        """Nothing: `update` pauses the replica just before it receives."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        assert self.replicas is not None
        self.pauses = self.replicas.update(WeightUpdate(self.version, update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Nothing: `update` has stamped the version and resumed."""


def trainer_engine(rank: int, client: SyncClient, source: StagedSource) -> Any:
    """vLLM's trainer end, without a communicator: rank 0 gets its own from `join`, the others have none."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    buffers = {"packed_buffer_size_bytes": BUFFER_BYTES, "packed_num_buffers": NUM_BUFFERS}
    return NCCLTrainerWeightTransferEngine(client=client, source=source, is_sender=rank == 0, **buffers)


def new_id() -> bytes:
    """Of a communicator. NCCL listens for its ranks here from now on, and refuses who does not know it."""
    from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

    return bytes(NCCLLibrary().ncclGetUniqueId().internal)


def invitation(engine: Any, unique_id: bytes, world_size: int) -> dict[str, Any]:
    """What workers are to know, through Ray. vLLM's own way is a store that anyone writes to, whose values it
    unpickles."""
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload

    info = NCCLWeightTransferInitInfo(
        rank_offset=1,
        world_size=world_size,
        nccl_unique_id_b64=base64.b64encode(unique_id).decode(),
        packed=engine.packed,
        packed_buffer_size_bytes=engine.packed_buffer_size_bytes,
        packed_num_buffers=engine.packed_num_buffers,
    )
    return worker_init_payload(info)


def join(unique_id: bytes, world_size: int, device: int) -> Any:
    """Rank 0's communicator, once all workers are there."""
    from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group

    return enabled(uid_init_process_group(unique_id, 0, world_size, device))


class NcclEngine(NCCLWeightTransferEngine):
    """A worker's end: vLLM's own, which must not be without a communicator, or with what another push has left."""

    def init_transfer_engine(self, init_info: Any) -> None:
        self.shutdown()
        super().init_transfer_engine(init_info)
        enabled(self.model_update_group)

    def start_weight_update(self) -> None:
        forget_half_a_push(self.model)
        super().start_weight_update()


def enabled(communicator: Any) -> Any:
    """The communicator. Raises RunFailed if it would do nothing: a worker would load what is in its memory."""
    if communicator.disabled:
        raise RunFailed(
            f"weights.channel nccl: vLLM on {socket.gethostname()} has switched its NCCL off; unset "
            "VLLM_DISABLE_PYNCCL, see that NCCL's library can be loaded there, or set weights.channel=gloo"
        )
    return communicator
