"""The trainer's end of the weight push; each rank of the trainer has one.

    publish(version):  staged copy -> every replica, all at once or one after the other -> live
Waits for: each replica's pause, transfer and load, all under one deadline. Unblocks: the next publish.
Training does not wait: the step stages a copy of the weights, a push reads it from another thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from asyncrl.weights import cuda_ipc
from asyncrl.weights.files import write_push
from asyncrl.weights.pieces import Piece
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.update import PublishReport, Replicas, WeightUpdate

S = TypeVar("S")
T = TypeVar("T")


class Channel(Protocol):
    """A rank's end. Replicas are given to rank 0 only, which speaks to them; `ends` and `copies` are all ranks'."""

    def end(self) -> Any:
        """What replicas must know to reach this rank."""

    def connect(self, replicas: Replicas | None, num_workers: int, ends: list[Any]) -> None: ...

    def copy(self, version: int, staged: StagedWeights) -> Any:
        """What replicas must know to read this copy, which is as it is until the next call."""

    def publish(self, version: int, staged: StagedWeights, copies: list[Any]) -> PublishReport:
        """Returns when all replicas are live at `version`, or this rank has done its part."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class ChannelConfig:
    """Of one rank of the trainer."""

    backend: str
    rank: int
    address: str
    """Of its node."""
    timeout_s: float
    dtype: str
    folder: Path
    """Where `disk` writes."""
    rolling: bool = False
    lora_scale: float | None = None
    lora_transposed: tuple[str, ...] = ()
    group: Any = None
    """For nccl: a process group of the trainer's ranks that only pushes use."""


def open_channel(config: ChannelConfig, staged: StagedWeights) -> Channel:
    """`staged`: any copy; they are all alike."""
    if config.backend == "none":
        return VersionChannel()
    if config.backend == "nccl":
        return NcclChannel(config, staged)
    return HostChannel(config, staged)


class HostChannel:
    """gloo, shared memory, CUDA IPC or a disk: a worker finds a flat buffer of each rank."""

    def __init__(self, config: ChannelConfig, staged: StagedWeights) -> None:
        from asyncrl.weights.gloo import GlooEnd

        self._config = config
        self._pieces = [asdict(piece) for piece in staged.pieces]
        self._gloo = GlooEnd(config.address, config.timeout_s) if config.backend == "gloo" else None
        self._handles: dict[int, Any] = {}
        """Of the copies on a GPU, by their addresses: each is handed out once."""

    def end(self) -> Any:
        return {"pieces": self._pieces, **(self._gloo.reach if self._gloo else {})}

    def connect(self, replicas: Replicas | None, num_workers: int, ends: list[Any]) -> None:
        self._replicas = replicas
        plan = {
            "transport": self._config.backend,
            "ends": ends,
            "dtype": self._config.dtype,
            "lora_scale": self._config.lora_scale,
            "lora_transposed": self._config.lora_transposed,
            "rank_offset": 1,
            "world_size": 1 + num_workers,
            "timeout_s": self._config.timeout_s,
        }
        _side_by_side(
            lambda: replicas.join(plan) if replicas else None,
            lambda: self._gloo.join(1 + num_workers) if self._gloo else None,
        )

    def copy(self, version: int, staged: StagedWeights) -> Any:
        if self._config.backend == "disk":
            return str(write_push(staged.flat, self._config.folder, version, self._config.rank))
        if self._config.backend == "cuda_ipc":
            address = staged.flat.data_ptr()
            if address not in self._handles:
                self._handles[address] = cuda_ipc.handle(staged.flat)
            return self._handles[address]
        if self._gloo:
            self._gloo.prepare(staged.flat)
        return None if staged.path is None else str(staged.path)

    def publish(self, version: int, staged: StagedWeights, copies: list[Any]) -> PublishReport:
        began = time.perf_counter()
        update, rolling = WeightUpdate(version, {"copies": copies}), self._config.rolling
        pauses, num_bytes = _side_by_side(
            lambda: self._replicas.update(update, rolling=rolling) if self._replicas else {},
            lambda: self._gloo.send() if self._gloo else staged.flat.nbytes,
        )
        return _report(version, began, pauses, num_bytes)

    def close(self) -> None:
        if self._gloo:
            self._gloo.close()


class VersionChannel:
    """For engines that hold no weights (the simulated one): only the version travels."""

    def end(self) -> Any:
        return None

    def connect(self, replicas: Replicas | None, num_workers: int, ends: list[Any]) -> None:
        self._replicas = replicas

    def copy(self, version: int, staged: StagedWeights) -> Any:
        return None

    def publish(self, version: int, staged: StagedWeights, copies: list[Any]) -> PublishReport:
        began = time.perf_counter()
        pauses = self._replicas.update(WeightUpdate(version)) if self._replicas else {}
        return _report(version, began, pauses, 0)

    def close(self) -> None:
        """Nothing is open."""


class NcclChannel:
    """GPUs, through vLLM's own engine: rank 0 sends; the others hand it what they hold, a parameter at a time."""

    def __init__(self, config: ChannelConfig, staged: StagedWeights) -> None:
        self._config, self._staged = config, staged
        self._engine: Any = None

    def end(self) -> Any:
        return {"pieces": [asdict(piece) for piece in self._staged.pieces]}

    def connect(self, replicas: Replicas | None, num_workers: int, ends: list[Any]) -> None:
        from asyncrl.weights import nccl

        pieces = [[Piece.of_wire(piece) for piece in end["pieces"]] for end in ends]
        self._source = nccl.StagedSource(pieces, self._config.rank, self._config.group)
        self._client = nccl.SyncClient(replicas)
        self._engine = nccl.trainer_engine(self._config.rank, self._client, self._source)
        if replicas is None:
            return
        world_size, unique_id = 1 + num_workers, nccl.new_id()
        invitation = nccl.invitation(self._engine, unique_id, world_size)
        device = torch.accelerator.current_device_index()
        _, self._engine.model_update_group = _side_by_side(
            lambda: replicas.join(invitation), lambda: nccl.join(unique_id, world_size, device)
        )

    def copy(self, version: int, staged: StagedWeights) -> Any:
        return None

    def publish(self, version: int, staged: StagedWeights, copies: list[Any]) -> PublishReport:
        began = time.perf_counter()
        self._client.version, self._source.staged = version, staged
        self._engine.send_weights()
        return _report(version, began, self._client.pauses, staged.flat.nbytes)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()


def _report(version: int, began: float, pauses: Mapping[str, float], num_bytes: int) -> PublishReport:
    return PublishReport(version, time.perf_counter() - began, max(pauses.values(), default=0.0), num_bytes)


def _side_by_side(talk: Callable[[], T], send: Callable[[], S]) -> tuple[T, S]:
    """What both return. The first error of either is raised at once: whoever still waits for one that died is left
    to the deadline."""
    executor = ThreadPoolExecutor(max_workers=2)
    try:
        talking, sending = executor.submit(talk), executor.submit(send)
        done, _ = wait([talking, sending], return_when=FIRST_EXCEPTION)
        for call in sorted(done, key=lambda call: call.exception() is None):
            call.result()
        return talking.result(), sending.result()
    finally:
        executor.shutdown(wait=False)
