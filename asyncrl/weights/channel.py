"""The trainer's end of the weight push: one object per set of generators, the same for gloo and nccl.

    publish(version):  staged copy -> broadcast to every replica at once -> live
Waits for: each replica's pause, transfer and load, all under one deadline. Unblocks: the next publish.
Training does not wait: the step stages a copy of the weights, a push reads it from another thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from asyncrl.weights.staging import StagedWeights


@dataclass(frozen=True)
class WeightUpdate:
    """One push, as a replica receives it: the version that becomes live and the backend's layout of the bytes."""

    version: int
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishReport:
    """What a push cost. pause_s: the longest that a replica's generation stood still."""

    version: int
    transfer_s: float
    pause_s: float
    num_bytes: int


class Replicas(Protocol):
    """The generators as the channel sees them; blocking calls with a deadline inside (`runtime/replicas.py`)."""

    num_workers: int
    """Engine workers over all replicas: the group has one rank more."""

    def join(self, init_info: dict[str, Any]) -> None: ...

    def update(self, update: WeightUpdate) -> Mapping[str, float]:
        """Pause, receive, load, stamp, resume on every replica; returns the seconds each stood still."""
        ...


class _SyncClient:
    """vLLM's four control calls, mapped to one call per replica and push, which pauses and resumes by itself."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self.version = -1
        self.pauses: Mapping[str, float] = {}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.replicas.join(init_info)

    def start_weight_update(self) -> None:
        """Nothing: `update` pauses the replica just before it receives."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.pauses = self.replicas.update(WeightUpdate(self.version, update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Nothing: `update` has stamped the version and resumed."""


class TransferChannel:
    """Pushes through one of vLLM's weight-transfer engines (`gloo` is ours, `nccl` vLLM's)."""

    def __init__(
        self, backend: str, replicas: Replicas, address: str, timeout_s: float, lora_scale: float | None = None
    ) -> None:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        from asyncrl.weights.gloo import StagedSource
        from asyncrl.weights.plugin import register

        register()
        self._client = _SyncClient(replicas)
        self._source = StagedSource()
        self._engine = WeightTransferTrainerFactory.trainer_init(
            _init_info(backend, address, 1 + replicas.num_workers, timeout_s, lora_scale),
            client=self._client,
            source=self._source,
        )

    def publish(self, version: int, staged: StagedWeights) -> PublishReport:
        """Send the staged weights to every replica; returns when all of them are live at `version`."""
        began = time.perf_counter()
        self._client.version = version
        self._source.staged = staged
        self._engine.send_weights()
        return PublishReport(
            version,
            time.perf_counter() - began,
            max(self._client.pauses.values(), default=0.0),
            staged.num_bytes,
        )

    def close(self) -> None:
        self._engine.shutdown()


class VersionChannel:
    """For engines that hold no weights (the simulated one): only the version travels."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas

    def publish(self, version: int, staged: StagedWeights) -> PublishReport:
        began = time.perf_counter()
        pauses = self.replicas.update(WeightUpdate(version))
        return PublishReport(version, time.perf_counter() - began, max(pauses.values(), default=0.0), 0)

    def close(self) -> None:
        """Nothing is open."""


def _init_info(backend: str, address: str, world_size: int, timeout_s: float, lora_scale: float | None) -> Any:
    if backend == "gloo":
        from asyncrl.weights.gloo import GlooTrainerInitInfo

        return GlooTrainerInitInfo(address, world_size, timeout_s, lora_scale, rank=0)
    if backend == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        return NCCLTrainerInitInfo(address, get_open_port(), world_size, rank=0)
    raise ValueError(f"weights.channel is gloo, nccl or none, not {backend!r}")
