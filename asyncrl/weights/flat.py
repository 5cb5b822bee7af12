"""The trainer's end of a transport whose workers find a flat buffer of each rank: all but how the bytes go."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from typing import Any, TypeVar

from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.transport import SenderConfig
from asyncrl.weights.update import PublishReport, Replicas, WeightUpdate

S = TypeVar("S")
T = TypeVar("T")


class FlatSender:
    """A `Sender` but for `copy`. Nothing is sent, unless `send` does: who has the `copies` reads them."""

    def __init__(self, config: SenderConfig, staged: StagedWeights) -> None:
        self._config = config
        self._shards = [asdict(shard) for shard in staged.shards]

    def reach(self) -> dict[str, Any]:
        """What a worker must know of this rank beside its shards."""
        return {}

    def join(self, world_size: int) -> None:
        """Meet the workers, which come meanwhile."""

    def send(self, staged: StagedWeights) -> int:
        """Send what `copy` was called with; the bytes that each worker has received or read."""
        return staged.flat.nbytes

    def endpoint(self) -> Any:
        return {"shards": self._shards, **self.reach()}

    def connect(self, replicas: Replicas | None, num_workers: int, endpoints: list[Any]) -> None:
        self._replicas, config = replicas, self._config
        plan = {
            "module": config.module,
            "endpoints": endpoints,
            "dtype": config.dtype,
            "adapters": asdict(config.adapters) if config.adapters else None,
            "rank_offset": 1,
            "world_size": 1 + num_workers,
            "timeout_s": config.timeout_s,
        }
        side_by_side(lambda: replicas.join(plan) if replicas else None, lambda: self.join(1 + num_workers))

    def publish(self, version: int, staged: StagedWeights, copies: list[Any]) -> PublishReport:
        began = time.perf_counter()
        update, rolling = WeightUpdate(version, {"copies": copies}), self._config.rolling
        pauses, num_bytes = side_by_side(
            lambda: self._replicas.update(update, rolling=rolling) if self._replicas else {}, lambda: self.send(staged)
        )
        return report(version, began, pauses, num_bytes)

    def close(self) -> None:
        """Nothing is open."""


def report(version: int, began: float, pauses: Mapping[str, float], num_bytes: int) -> PublishReport:
    return PublishReport(version, time.perf_counter() - began, max(pauses.values(), default=0.0), num_bytes)


def side_by_side(talk: Callable[[], T], send: Callable[[], S]) -> tuple[T, S]:
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
