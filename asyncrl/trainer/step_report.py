"""What the learner adds up over a step, and what a step says of ages."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field

from asyncrl.algorithms.offpolicy import OffPolicySums
from asyncrl.trainer.packing import PackedBatch
from asyncrl.trainer.ranks import ProcessGroup

_MOST_NATS = 50.0
"""More is a model that is broken; the perplexity stays a number that JSON has."""


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
    nll: float = 0.0
    """Of the tokens with a gradient, nats."""
    margin: float = 0.0
    preferred: float = 0.0
    """This and the one before: `Terms.preferred`."""
    trajectories: float = 0.0
    """Those that passed with a gradient."""
    tokens_taught: float = 0.0
    """Those with a gradient of which a teacher has said something."""
    teacher_logprob: float = 0.0
    teacher_kl: float = 0.0
    """This and the one before: sums over them."""
    rows_nll: float = 0.0
    """Of the learnt tokens of demonstrations that joined, nats."""
    rows_tokens: float = 0.0
    off_policy: OffPolicySums = field(default_factory=OffPolicySums)

    def over(self, process_group: ProcessGroup) -> Sums:
        *numbers, off_policy = vars(self).values()
        total = process_group.sum([*numbers, *astuple(off_policy)])
        return Sums(*total[: len(numbers)], OffPolicySums(*total[len(numbers) :]))  # type: ignore[arg-type]

    def taught(self, batch: PackedBatch) -> None:
        """Add what teachers say of a micro-batch, if there are any."""
        if (said := batch.columns.get("teacher_logprobs")) is not None:
            scored = ~said.isnan()
            self.tokens_taught += float(scored.sum())
            self.teacher_logprob += float(said[scored].sum())
            self.teacher_kl += float((batch.behaviour_logprobs - said)[scored].sum())


def distilled(sums: Sums, has_teacher: bool) -> dict[str, float | None]:
    """distil/*: kl: mean over the taught tokens of log pi_sampler - log pi_teacher, nats, an estimate of the reverse KL
    per token; None if the engine gave no log-probs."""
    if not has_teacher or not sums.tokens_with_gradient:
        return {}
    share = sums.tokens_taught / sums.tokens_with_gradient
    if not sums.tokens_taught:
        return {"distil/taught_share": share}
    kl = sums.teacher_kl / sums.tokens_taught
    return {
        "distil/kl": kl if math.isfinite(kl) else None,
        "distil/teacher_logprob": sums.teacher_logprob / sums.tokens_taught,
        "distil/taught_share": share,
    }


def demonstrated(sums: Sums, num_rows: int | None) -> dict[str, float | None]:
    """sft/* of demonstrations beside the loss: nats per learnt token, as it was before each update, and rows; None:
    there are none of the kind."""
    if num_rows is None:
        return {}
    return {"sft/nll": sums.rows_nll / sums.rows_tokens if sums.rows_tokens else None, "sft/rows": float(num_rows)}


def learnt(sums: Sums, loss: str, in_pairs: bool) -> dict[str, float | None]:
    """sft/*: nats per token, and the perplexity that it is. pairs/*: mean of beta (Delta(chosen) - Delta(rejected)),
    and the share of pairs in which that is above 0. As they were before each update; of these losses alone."""
    if loss == "sft" and sums.tokens_with_gradient:
        nll = sums.nll / sums.tokens_with_gradient
        return {"sft/nll": nll, "sft/perplexity": math.exp(min(nll, _MOST_NATS))}
    if in_pairs and sums.trajectories:
        return {
            "pairs/margin": sums.margin / sums.trajectories,
            "pairs/accuracy": sums.preferred / sums.trajectories,
        }
    return {}


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
