"""Weights received by a vLLM worker: a flat buffer of each rank of the trainer, loaded as parameters through the
model's own loader.

Base classes and calls are vLLM's (`vllm.distributed.weight_transfer`, read in 0.32.0). How the buffers arrive is the
matter of a transport's `Receiver`, whose module is named when the worker joins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from asyncrl.weights.lora import Adapters, merge
from asyncrl.weights.shards import Shard, assemble
from asyncrl.weights.transport import Receiver, receiver_class

_OTHER_MODEL = "the engine's model is not the one that was sent"
_NUM_NAMED = 3


@dataclass
class HostInitInfo(WeightTransferInitInfo):
    """What a worker has to know for all pushes to come."""

    module: str
    """Of the transport."""
    endpoints: list[dict[str, Any]]
    """Of each rank of the trainer: its `shards`, in the order of its buffer, and how to reach it."""
    dtype: str
    adapters: dict[str, Any] | None
    """The parameters are such, to be merged into the base (`lora.Adapters`)."""
    rank_offset: int
    """Differs per replica, so that independent replicas do not collide."""
    world_size: int
    timeout_s: float


@dataclass
class HostUpdateInfo(WeightTransferUpdateInfo):
    """One push."""

    copies: list[Any]
    """Of each rank of the trainer: which of its buffers to read."""


Weights = Iterable[tuple[str, torch.Tensor]]
Load = Callable[[Weights], set[str] | None]


def load_by_kind(load: Load, weights: Weights) -> tuple[set[str] | None, list[str], list[str]]:
    """Load weights in their order. Returns the names of all of the engine's weights that were loaded, None from a model
    that does not say; the sent names that loaded nothing, which an engine may pass over in silence; and all sent. The
    first of each kind, that is of those whose names differ in numbers alone, is loaded by itself and stands for it."""
    loaded: list[set[str] | None] = []
    unused: list[str] = []
    sent: list[str] = []
    kinds: set[str] = set()
    coming = iter(weights)
    item = next(coming, None)

    def of_known_kinds() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal item
        while item is not None and _kind(item[0]) in kinds:
            sent.append(item[0])
            yield item
            item = next(coming, None)

    while item is not None:
        if _kind(item[0]) in kinds:
            loaded.append(load(of_known_kinds()))
            continue
        kinds.add(_kind(item[0]))
        sent.append(item[0])
        loaded.append(load([item]))
        if loaded[-1] == set():
            unused.append(item[0])
        item = next(coming, None)
    if None in loaded:
        return None, [], sent
    return set().union(*(names for names in loaded if names)), unused, sent


def _kind(name: str) -> str:
    return re.sub(r"\d+", "0", name)


def lacking(sent: Iterable[str], fused: Mapping[str, list[str]]) -> list[str]:
    """Names that were not sent although others were of which the engine makes one weight: of `q_proj` without `k_proj`
    a part of `qkv_proj` would be left as it was. Biases may be there for some of them alone."""
    names = set(sent)
    lacking = set()
    for members in fused.values():
        for name in names:
            module, _, kind = name.rpartition(".")
            path, _, member = module.rpartition(".")
            if kind == "weight" and member in members:
                lacking |= {f"{path}.{other}.weight" for other in members} - names
    return sorted(lacking)


def forget_half_a_push(model: torch.nn.Module) -> None:
    """What a push that failed gave a layer of which more was to come: vLLM would count it as part of the next one."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            info.loaded_weights.clear()
            info.load_numel = 0


class HostEngine(WeightTransferEngine[HostInitInfo, HostUpdateInfo]):
    """Runs in a vLLM worker."""

    init_info_cls = HostInitInfo
    update_info_cls = HostUpdateInfo
    receiver: Receiver | None = None
    names_checked = False
    """They are the same in every push."""

    def init_transfer_engine(self, init_info: HostInitInfo) -> None:
        self.shutdown()
        parallel = self.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + parallel.rank + init_info.rank_offset
        self.plan, self.names_checked = init_info, False
        self.shards = [[Shard.of_wire(s) for s in endpoint["shards"]] for endpoint in init_info.endpoints]
        self.adapters = Adapters(**init_info.adapters) if init_info.adapters else None
        self.receiver = receiver_class(init_info.module)(
            init_info.endpoints, rank, init_info.world_size, init_info.timeout_s
        )

    def start_weight_update(self) -> None:
        # Linear layers are repacked after loading: without this their loaders are gone (vLLM's reload module).
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        forget_half_a_push(self.model)
        self._forget_packed_experts()
        initialize_layerwise_reload(self.model)

    def _forget_packed_experts(self) -> None:
        # On CPU experts are packed only where their kernel is made, which vLLM does once: after a push the kernel would
        # read weights that are not packed. Without one, loading makes it again, as at the start.
        from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
        from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

        methods = (getattr(layer, "quant_method", None) for layer in self.model.modules())
        for method in methods:
            ours = isinstance(method, UnquantizedFusedMoEMethod)
            if ours and method.unquantized_backend == UnquantizedMoeBackend.CPU:
                method.moe_kernel = None

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_head()

    def _repack_tied_head(self) -> None:
        # A tied output head shares the embedding's parameter but computes with a packed copy of its own on CPU.
        # No weight is ever loaded under the head's name, so vLLM's reload leaves that copy at the old version.
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for name, layer in self.model.named_modules():
            if isinstance(layer, ParallelLMHead) and f"{name}.weight" in self._tied_names():
                layer.quant_method.process_weights_after_loading(layer)

    def _tied_names(self) -> set[str]:
        """Weights of the engine that are never sent, for they are others."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        if not getattr(self.model_config.hf_config, "tie_word_embeddings", False):
            return set()
        heads = [name for name, layer in self.model.named_modules() if isinstance(layer, ParallelLMHead)]
        return {f"{name}.weight" for name in heads}

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        # A CPU build of torch has nothing to wait for. A GPU has not read all of the trainer's copy before.
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: HostUpdateInfo) -> None:
        if self.receiver is None:
            raise RuntimeError("weights arrived before init_transfer_engine")
        weights = assemble(self._parts(self.receiver, update_info.copies))
        if self.adapters:
            weights = merge(self._base_weights(), dict(weights), self.adapters)
        if self.names_checked:
            self.model.load_weights(weights)
        else:
            self._load_checked(weights)
            self.names_checked = True

    def _load_checked(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Load them, and see that every name is used and every weight of the engine comes."""
        wanted = {name for name, _ in self.model.named_parameters()} - self._tied_names()
        if not self.adapters:
            loaded, unused, sent = load_by_kind(self.model.load_weights, weights)
        else:
            # What a file has beside the weights is not asked for, such as a tied head's.
            loaded, unused, sent = self.model.load_weights(weights), [], []
        parallel = self.parallel_config
        if loaded is None or parallel.pipeline_parallel_size > 1 or parallel.enable_expert_parallel:
            return
        if unused:
            raise ValueError(f"{_OTHER_MODEL}: it has no place for {', '.join(unused[:_NUM_NAMED])}")
        fused = getattr(self.model, "packed_modules_mapping", None) or {}
        if missing := sorted(wanted - loaded) + lacking(sent, fused):
            raise ValueError(f"{_OTHER_MODEL}: nothing was sent for {', '.join(missing[:_NUM_NAMED])}")

    def _parts(self, receiver: Receiver, copies: list[Any]) -> Iterator[tuple[Shard, torch.Tensor]]:
        sizes = [[shard.num_elements for shard in shards] for shards in self.shards]
        flats = receiver.receive(copies, [sum(s) for s in sizes], getattr(torch, self.plan.dtype))
        for shards, own, flat in zip(self.shards, sizes, flats, strict=True):
            yield from zip(shards, flat.split(own), strict=True)

    def _base_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As they are on disk: the model in memory holds them packed, and merged with the adapters of before."""
        from vllm.model_executor.model_loader import get_model_loader

        loader = get_model_loader(self.vllm_config.load_config)
        yield from loader.get_all_weights(self.model_config, self.model)

    def shutdown(self) -> None:
        if self.receiver is not None:
            self.receiver.close()
            self.receiver = None
