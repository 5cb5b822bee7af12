"""What rewards say of whether completions are right: one rule for metrics, evaluations and success rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from asyncrl.metric_names import JUDGED, VERDICTS


def accuracy(rewards: Sequence[float | None], extras: Sequence[Mapping[str, float]]) -> float | None:
    """Mean of the extra named `accuracy`, or verl's `acc`, if a reward returned one, else the share of rewards of 1.

    Failed rewards (None) count neither way (I7), nor do those of several parts of which none said what is right; None
    if nothing counts, or a reward or an accuracy is above 1: then nobody said what is right.
    """
    (values,) = verdicts([rewards], [extras]) or ([],)
    return sum(values) / len(values) if values else None


def verdicts(
    rewards: Sequence[Sequence[float | None]], extras: Sequence[Sequence[Mapping[str, float]]]
) -> list[list[float]]:
    """Of the trajectories of each task that were scored, whether they are right, by one rule for all; [] if nobody
    said. A trajectory beyond the extras has none."""
    tasks = [
        [(reward, extra) for reward, extra in zip_longest(*task, fillvalue={}) if reward is not None]
        for task in zip(rewards, extras, strict=True)
    ]
    scored = [one for task in tasks for one in task]
    for name in VERDICTS:
        if said := [extra[name] for _, extra in scored if name in extra]:
            return [[extra[name] for _, extra in task if name in extra] for task in tasks] if max(said) <= 1.0 else []
    # Of a sum of several parts, those parts alone say what is right.
    alone = [[reward for reward, extra in task if JUDGED not in extra] for task in tasks]
    if not any(alone) or max(reward for task in alone for reward in task) > 1.0:
        return []
    return [[float(reward == 1.0) for reward in task] for task in alone]
