"""Weights in host memory, received by a vLLM worker: a flat buffer of each rank of the trainer, loaded as parameters
through the model's own loader.

Base classes and calls are vLLM's (`vllm.distributed.weight_transfer`, read in 0.32.0). How the buffers arrive is said
when the worker joins: over gloo, in shared memory, or from a disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from asyncrl.weights.gloo import GlooReceiver
from asyncrl.weights.lora import merge
from asyncrl.weights.mapped import DiskReceiver, SharedMemoryReceiver
from asyncrl.weights.pieces import Piece, assemble


class Receiver(Protocol):
    """A worker's end."""

    def __init__(self, ends: list[dict[str, Any]], rank: int, world_size: int, timeout_s: float) -> None: ...

    def receive(self, copies: list[Any], sizes: list[int], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The flat buffer of each rank of the trainer, `sizes` elements each."""

    def close(self) -> None: ...


RECEIVERS: dict[str, type[Receiver]] = {
    "gloo": GlooReceiver,
    "shared_memory": SharedMemoryReceiver,
    "disk": DiskReceiver,
}


@dataclass
class HostInitInfo(WeightTransferInitInfo):
    """What a worker has to know for all pushes to come."""

    transport: str
    """gloo, shared_memory or disk."""
    ends: list[dict[str, Any]]
    """Of each rank of the trainer: its `pieces`, in the order of its buffer, and how to reach it."""
    dtype: str
    lora_scale: float | None
    """The parameters are adapters, to be merged into the base at this scale."""
    lora_transposed: list[str]
    """Adapted modules whose weight in the base is stored [in, out]."""
    rank_offset: int
    """Differs per replica, so that independent replicas do not collide."""
    world_size: int
    timeout_s: float


@dataclass
class HostUpdateInfo(WeightTransferUpdateInfo):
    """One push."""

    copies: list[Any]
    """Of each rank of the trainer: which of its buffers to read."""


class HostEngine(WeightTransferEngine[HostInitInfo, HostUpdateInfo]):
    """Runs in a vLLM worker."""

    init_info_cls = HostInitInfo
    update_info_cls = HostUpdateInfo
    receiver: Receiver | None = None

    def init_transfer_engine(self, init_info: HostInitInfo) -> None:
        self.shutdown()
        parallel = self.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + parallel.rank + init_info.rank_offset
        self.plan = init_info
        self.pieces = [[Piece.of_wire(p) for p in end["pieces"]] for end in init_info.ends]
        kind = RECEIVERS[init_info.transport]
        self.receiver = kind(init_info.ends, rank, init_info.world_size, init_info.timeout_s)

    def start_weight_update(self) -> None:
        # Linear layers are repacked after loading: without this their loaders are gone (vLLM's reload module).
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_head()

    def _repack_tied_head(self) -> None:
        # A tied output head shares the embedding's parameter but computes with a packed copy of its own on CPU.
        # No weight is ever loaded under the head's name, so vLLM's reload leaves that copy at the old version.
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        if not getattr(self.model_config.hf_config, "tie_word_embeddings", False):
            return
        for layer in self.model.modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class ends in torch.accelerator.synchronize(), which a CPU build does not have.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: HostUpdateInfo) -> None:
        if self.receiver is None:
            raise RuntimeError("weights arrived before init_transfer_engine")
        weights = assemble(self._parts(self.receiver, update_info.copies))
        if self.plan.lora_scale is None:
            self.model.load_weights(weights)
        else:
            plan = self.plan
            merged = merge(self._base_weights(), dict(weights), plan.lora_scale, plan.lora_transposed)
            self.model.load_weights(merged)

    def _parts(self, receiver: Receiver, copies: list[Any]) -> Iterator[tuple[Piece, torch.Tensor]]:
        sizes = [[piece.stop - piece.start for piece in pieces] for pieces in self.pieces]
        flats = receiver.receive(copies, [sum(s) for s in sizes], getattr(torch, self.plan.dtype))
        for pieces, own, flat in zip(self.pieces, sizes, flats, strict=True):
            yield from zip(pieces, flat.split(own), strict=True)

    def _base_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As they are on disk: the model in memory holds them packed, and merged with the adapters of before."""
        from vllm.model_executor.model_loader import get_model_loader

        loader = get_model_loader(self.vllm_config.load_config)
        yield from loader.get_all_weights(self.model_config, self.model)

    def shutdown(self) -> None:
        if self.receiver is not None:
            self.receiver.close()
            self.receiver = None
