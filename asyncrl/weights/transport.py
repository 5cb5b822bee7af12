"""How new weights get from the trainer to the engines: what a weight transport is, and who calls what when.

A transport is one module of `transports/`, with both ends, and one line of `registry.TRANSPORTS`.

    each rank of the trainer                                 each worker of an engine
    Sender(config, staged).endpoint() ── of all ranks ──┐
    Sender.connect(replicas, n, endpoints) ── join ─────┴──▶ Receiver(endpoints, rank, world_size, timeout_s)
    then, for every weight sync
    Sender.copy(version, staged) ── of all ranks ───────┐
    Sender.publish(version, staged, copies) ── update ──┴──▶ Receiver.receive(copies, sizes, dtype) -> load, stamp
    Sender.close()                                           Receiver.close(), before it joins again

The trainer actor calls the left side, in its push thread: training does not wait, for `staged` is a copy. Who was lost
is replaced, and then all is made anew, from `Sender` on. The right side is called by `host.py` in vLLM's worker. What
goes between the two (`join`, `update`) goes through Ray and the generator. Every wait ends after `timeout_s`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from asyncrl.plugins import load_object
from asyncrl.registry import TRANSPORTS
from asyncrl.weights.lora import Adapters
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.update import PublishReport, Replicas


@dataclass(frozen=True)
class SenderConfig:
    """Of one rank of the trainer."""

    transport: str
    """A key of TRANSPORTS."""
    rank: int
    address: str
    """Of its node."""
    timeout_s: float
    dtype: str
    folder: Path
    """Where `disk` writes."""
    rolling: bool = False
    adapters: Adapters | None = None
    """The weights are such, to be merged into the base."""
    group: Any = None
    """For nccl: a process group of the trainer's ranks that only weight syncs use."""

    @property
    def module(self) -> str:
        return TRANSPORTS[self.transport].module


class Sender(Protocol):
    """A rank's end. Rank 0 alone is given replicas, which it calls; `endpoints` and `copies` are all ranks'."""

    def __init__(self, config: SenderConfig, staged: StagedWeights) -> None:
        """`staged`: any copy; they are all laid out alike."""

    def endpoint(self) -> Any:
        """What replicas must know to reach this rank."""

    def connect(self, replicas: Replicas | None, num_workers: int, endpoints: list[Any]) -> None: ...

    def copy(self, version: int, staged: StagedWeights) -> Any:
        """What replicas must know to read this copy, which is as it is until the next call."""

    def publish(self, version: int, staged: StagedWeights, copies: list[Any]) -> PublishReport:
        """Returns when all replicas are live at `version`, or this rank has done its part."""

    def close(self) -> None: ...


class Receiver(Protocol):
    """A worker's end of a transport that gives it a flat buffer of each rank (`flat.py` has the other end)."""

    def __init__(self, endpoints: list[dict[str, Any]], rank: int, world_size: int, timeout_s: float) -> None: ...

    def receive(self, copies: list[Any], sizes: list[int], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The flat buffer of each rank of the trainer, `sizes` elements each."""

    def close(self) -> None: ...


def open_sender(config: SenderConfig, staged: StagedWeights) -> Sender:
    sender: Sender = _load(config.module, "Sender")(config, staged)
    return sender


def receiver_class(module: str) -> type[Receiver]:
    kind: type[Receiver] = _load(module, "Receiver")
    return kind


def _load(module: str, end: str) -> Any:
    return load_object(f"{module}:{end}", Path(), "weights.channel")
