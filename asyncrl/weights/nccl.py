"""Between our staged weights and vLLM's `nccl` engine, which needs GPUs: the one channel that vLLM drives itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from asyncrl.weights.pieces import Piece
from asyncrl.weights.staging import StagedWeights


class StagedSource(WeightSource):
    """vLLM's view of the staged weights, set anew before each push. Every rank of the trainer has one.

    With several, each parameter is gathered on rank 0 just before it is sent, in `group`, which nothing else uses.
    """

    staged: StagedWeights

    def __init__(self, ends: list[list[Piece]], rank: int, group: Any) -> None:
        """ends: the pieces of each rank, names in the same order."""
        self._ends, self._rank, self._group = ends, rank, group

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(piece.name, self.staged.flat.dtype, piece.shape) for piece in self._ends[0]]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for index, view in enumerate(self.staged.views):
            parts = [end[index] for end in self._ends]
            whole = view if len(parts) == 1 else self._gather([p.stop - p.start for p in parts], view)
            # The other ranks only take part: what they give is not sent.
            yield parts[0].name, view if whole is None else whole.view(parts[0].shape)

    def _gather(self, sizes: list[int], view: torch.Tensor) -> torch.Tensor | None:
        padded = view.new_zeros(max(sizes))
        padded[: view.numel()] = view
        received = [torch.empty_like(padded) for _ in sizes] if self._rank == 0 else None
        torch.distributed.gather(padded, received, dst=0, group=self._group)
        if received is None:
            return None
        return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])


class SyncClient:
    """vLLM's four control calls, mapped to one call per replica and push, which pauses and resumes by itself."""

    def __init__(self, replicas: Any) -> None:
        self.replicas = replicas
        self.version = -1
        self.pauses: Mapping[str, float] = {}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.replicas.join(init_info)

    def start_weight_update(self) -> None:
        """Nothing: `update` pauses the replica just before it receives."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        from asyncrl.weights.channel import WeightUpdate

        self.pauses = self.replicas.update(WeightUpdate(self.version, update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Nothing: `update` has stamped the version and resumed."""


def trainer_engine(address: str, world_size: int, rank: int, client: SyncClient, source: StagedSource) -> Any:
    """vLLM's trainer end; rank 0 listens at `address`."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.utils.network_utils import get_open_port

    info = NCCLTrainerInitInfo(address, get_open_port(), world_size, rank=rank)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
