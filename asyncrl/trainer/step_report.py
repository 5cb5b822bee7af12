"""What the learner adds up over a step, and what a step says of ages."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field

from asyncrl.algorithms.offpolicy import OffPolicySums
from asyncrl.trainer.ranks import ProcessGroup


@dataclass
class Sums:
    """Over all updates of a step: of a rank, then of all."""

    loss: float = 0.0
    value_loss: float = 0.0
    entropy: float = 0.0
    tokens_forward: float = 0.0
    tokens_of_trajectories: float = 0.0
    """Those that passed, each trajectory's: what they share is in `tokens_forward` once."""
    tokens_with_gradient: float = 0.0
    off_policy: OffPolicySums = field(default_factory=OffPolicySums)

    def over(self, process_group: ProcessGroup) -> Sums:
        *numbers, off_policy = vars(self).values()
        total = process_group.sum([*numbers, *astuple(off_policy)])
        return Sums(*total[: len(numbers)], OffPolicySums(*total[len(numbers) :]))  # type: ignore[arg-type]


def compounded(ages: list[int], number: int) -> dict[str, float | None]:
    """Staleness in optimizer steps, when a batch takes `number` of them: age x number + updates done before."""
    tokens = sum(ages)
    if not tokens:
        return dict.fromkeys(("staleness/updates_mean", "staleness/updates_max"))
    oldest = max(age for age, count in enumerate(ages) if count)
    mean = sum(age * count for age, count in enumerate(ages)) / tokens
    return {
        "staleness/updates_mean": mean * number + (number - 1) / 2,
        "staleness/updates_max": float(oldest * number + number - 1),
    }


def replayed(past_ages: list[int], num_samples: int) -> dict[str, float | None]:
    """replay/*, for a step in which past trajectories were trained again; ages in updates."""
    if not past_ages:
        return {}
    return {
        "replay/share": len(past_ages) / num_samples,
        "replay/age_mean": sum(past_ages) / len(past_ages),
        "replay/age_max": float(max(past_ages)),
    }
