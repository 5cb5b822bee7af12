"""Steps of a run, made or simulated, as a few figures of the whole: what `metrics.jsonl` has per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figures:
    """Over some steps; times in seconds."""

    samples_per_s: float
    step_s: float
    shares: Mapping[str, float]
    """Means of `trainer_time/*` and `generator_time/*`, each step by the time it took."""
    completion_tokens: float
    """Of a trajectory that was trained."""
    busy_tokens_per_s: float
    """Of one generator, of the time in which it was busy; 0 if it never was."""
    staleness_mean: float
    staleness_max: int

    def seconds(self, share: str) -> float:
        """Of a step, that a role spent so."""
        return self.step_s * self.shares.get(share, 0.0)


def figures(records: Records, num_samples: int, replicas: int) -> Figures:
    """`num_samples` trajectories are trained in a step, by a run of so many generators. The first record is what the
    second starts from: there must be two at least."""
    first, rest = records[0], records[1:]
    walls: list[float] = [num_samples / record["throughput/samples_per_s"] for record in rest]
    whole_s: float = sum(walls)

    def mean(name: str) -> float:
        return sum(float(record.get(name) or 0.0) * wall for record, wall in zip(rest, walls, strict=True)) / whole_s

    shares = {name: mean(name) for name in first if "_time/" in name}
    generated = rest[-1]["tokens/generated"] - first["tokens/generated"]
    busy_s = whole_s * replicas * shares["generator_time/busy"]
    return Figures(
        samples_per_s=num_samples * len(rest) / whole_s,
        step_s=whole_s / len(rest),
        shares=shares,
        completion_tokens=sum(record["completion/tokens_mean"] for record in rest) / len(rest),
        busy_tokens_per_s=generated / busy_s if busy_s else 0.0,
        staleness_mean=sum(record["staleness/mean"] for record in rest) / len(rest),
        staleness_max=max(record["staleness/max"] for record in rest),
    )


def steady(records: Records) -> Records:
    """Without the first fifth, in which queues fill and kernels are compiled."""
    return records[len(records) // 5 :]
