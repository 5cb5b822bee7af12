"""For engines that hold no weights (the simulated one): only the version travels. They have no end of their own."""

from __future__ import annotations

import time
from typing import Any

from asyncrl.weights.flat import report
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.transport import SenderConfig
from asyncrl.weights.update import PublishReport, Replicas, WeightUpdate


class Sender:
    def __init__(self, config: SenderConfig, staged: StagedWeights) -> None: ...

    def endpoint(self) -> Any:
        return None

    def connect(self, replicas: Replicas | None, num_workers: int, endpoints: list[Any]) -> None:
        self._replicas = replicas

    def copy(self, version: int, staged: StagedWeights) -> Any:
        return None

    def publish(self, version: int, staged: StagedWeights, copies: list[Any]) -> PublishReport:
        began = time.perf_counter()
        pauses = self._replicas.update(WeightUpdate(version)) if self._replicas else {}
        return report(version, began, pauses, 0)

    def close(self) -> None:
        """Nothing is open."""
