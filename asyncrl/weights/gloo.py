"""The `gloo` weight-transfer engine for vLLM: both ends of a broadcast between CPU processes.

vLLM's own `nccl` engine needs GPUs. On CPU this one takes its place behind the same base classes and the same
calls (`vllm.distributed.weight_transfer`, read in 0.32.0), so that a push is one code path on every machine.
Differences: one flat buffer instead of packed chunks, and every collective has a deadline.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar

import torch
from torch.distributed import ProcessGroupGloo, TCPStore
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from asyncrl.weights.lora import merge
from asyncrl.weights.staging import StagedWeights


class StagedSource(WeightSource):
    """vLLM's view of the staged weights, set anew before each push; serves the gloo and the nccl engine alike."""

    staged: StagedWeights

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in self.staged.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.staged.items()


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """Trainer end: rank 0 of a group of `world_size`, which listens at `master_address`."""

    backend: ClassVar[str] = "gloo"
    master_address: str
    world_size: int
    timeout_s: float
    lora_scale: float | None = None


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Worker end. `rank_offset` differs per replica, so that independent replicas do not collide."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """Layout of the flat buffer: parameters in order."""

    names: list[str]
    shapes: list[list[int]]
    dtype: str
    lora_scale: float | None
    """The parameters are adapters, to be merged into the base at this scale."""


# Everyone who is to join is up and has been called: who is not here soon has died, and those who wait for it stand
# still meanwhile.
_JOIN_S = 60.0


def _group(store: TCPStore, rank: int, world_size: int, timeout_s: float) -> ProcessGroupGloo:
    group = ProcessGroupGloo(store, rank, world_size, timedelta(seconds=min(timeout_s, _JOIN_S)))
    group._set_default_timeout(timedelta(seconds=timeout_s))
    return group


class GlooEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Runs in a vLLM worker: receives the flat buffer and loads it through the model's own loader."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    group: ProcessGroupGloo | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        self.shutdown()
        parallel = self.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + parallel.rank + init_info.rank_offset
        timeout = timedelta(seconds=init_info.timeout_s)
        self.store = TCPStore(init_info.master_address, init_info.master_port, is_master=False, timeout=timeout)
        self.group = _group(self.store, rank, init_info.world_size, init_info.timeout_s)

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

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        if self.group is None:
            raise RuntimeError("weights arrived before init_transfer_engine joined a group")
        sizes = [int(torch.Size(shape).numel()) for shape in update_info.shapes]
        flat = torch.empty(sum(sizes), dtype=getattr(torch, update_info.dtype))
        self.group.broadcast([flat], _from_trainer()).wait()
        views = [view.view(shape) for view, shape in zip(flat.split(sizes), update_info.shapes, strict=True)]
        weights = zip(update_info.names, views, strict=True)
        if update_info.lora_scale is None:
            self.model.load_weights(weights)
        else:
            self.model.load_weights(merge(self._base_weights(), dict(weights), update_info.lora_scale))

    def _base_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As they are on disk: the model in memory holds them packed, and merged with the adapters of before."""
        from vllm.model_executor.model_loader import get_model_loader

        loader = get_model_loader(self.vllm_config.load_config)
        yield from loader.get_all_weights(self.model_config, self.model)

    def shutdown(self) -> None:
        if self.group is not None:
            self.group.abort()
            self.group = None


class GlooTrainerEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """Runs in trainer rank 0: sends the staged flat buffer while the replicas receive."""

    init_info_cls = GlooTrainerInitInfo
    group: ProcessGroupGloo
    store: TCPStore
    lora_scale: float | None

    @classmethod
    def trainer_init(
        cls,
        init_info: GlooTrainerInitInfo,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> GlooTrainerEngine:
        if not isinstance(source, StagedSource):
            raise TypeError("the gloo engine sends staged weights: pass a StagedSource")
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        engine.lora_scale = init_info.lora_scale
        timeout = timedelta(seconds=init_info.timeout_s)
        engine.store = TCPStore(init_info.master_address, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        worker_info = GlooInitInfo(
            init_info.master_address, engine.store.port, 1, init_info.world_size, init_info.timeout_s
        )
        executor = ThreadPoolExecutor(max_workers=2)
        try:
            joining = executor.submit(client.init_weight_transfer_engine, asdict(worker_info))
            grouping = executor.submit(_group, engine.store, 0, init_info.world_size, init_info.timeout_s)
            wait([joining, grouping], return_when=FIRST_EXCEPTION)
            if joining.done():
                joining.result()
            engine.group = grouping.result()
            joining.result()
        finally:
            # Whoever still waits for one that died is left to the deadline; the error must not wait for it.
            executor.shutdown(wait=False)
        return engine

    def send_weights(self) -> None:
        assert isinstance(self.source, StagedSource)
        metadata = self.source.metadata()
        flat = self.source.staged.flat
        info = GlooUpdateInfo(
            [m.name for m in metadata],
            [list(m.shape) for m in metadata],
            str(flat.dtype).split(".")[-1],
            self.lora_scale,
        )
        self.client.start_weight_update()
        executor = ThreadPoolExecutor(max_workers=1)
        try:
            receiving = executor.submit(self.client.update_weights, asdict(info))
            self.group.broadcast([flat], _from_trainer()).wait()
            receiving.result()
        finally:
            # A replica that died leaves its call to its own deadline; the error here must not wait for it.
            executor.shutdown(wait=False)
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.group.abort()


def _from_trainer() -> torch.distributed.BroadcastOptions:
    options = torch.distributed.BroadcastOptions()
    options.rootRank = 0
    return options
