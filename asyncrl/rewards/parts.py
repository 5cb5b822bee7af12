"""A reward of several parts: their weighted sum, with TRL's meaning of `reward_funcs` and `reward_weights`.

A part that returns None for a completion has no say in it. If none has one there is no reward, which is never a zero
(I7); nor is there if one of them fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncrl.metric_names import JUDGED, VERDICTS
from asyncrl.rewards.score import Score, failed


@dataclass(frozen=True)
class Part:
    """One reward function of a recipe."""

    fn: str
    """`package.module:name` or `./file.py:name`."""
    name: str = ""
    """Under which it is logged; empty: the recipe names this one alone."""
    weight: float = 1.0
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""
    """What verl's functions get as data_source if the row has none."""
    source: str = ""
    """The data source whose tasks it judges; empty: of all that have no reward of their own."""
    judges: bool = False
    """It says what is right, in the place of those that do not say so."""

    @property
    def key(self) -> str:
        """Of the recipe, where its `kwargs` are."""
        return f"reward {self.name}: kwargs" if self.name else "rewards.kwargs"


def of_source(parts: Sequence[Part], source: str) -> list[int]:
    """Places of the parts that judge the tasks of a data source."""
    own = [place for place, part in enumerate(parts) if source and part.source == source]
    return own or [place for place, part in enumerate(parts) if not part.source]


def combined(parts: Sequence[Part], scores: Sequence[Sequence[Score]]) -> list[Score]:
    """One Score per completion, of the scores [parts][completions]."""
    if len(parts) == 1 and not parts[0].name:
        return list(scores[0])
    return [_combined(parts, of_one) for of_one in zip(*scores, strict=True)]


def _combined(parts: Sequence[Part], scores: Sequence[Score]) -> Score:
    named = list(zip(parts, scores, strict=True))
    extras: dict[str, float] = {}
    notes: dict[str, str] = {}
    for part, score in named:
        if score.reward is not None:
            extras[part.name] = score.reward
        extras |= {f"{part.name}/{name}": number for name, number in score.extras.items() if name not in VERDICTS}
        notes |= {f"{part.name}/{name}": text for name, text in score.notes.items()}
    extras |= _verdict(named)
    if wrong := [f"{part.name}: {score.error}" for part, score in named if score.error and not score.abstains]:
        return Score(None, extras, failed("; ".join(wrong)).error, notes)
    said = [part.weight * score.reward for part, score in named if score.reward is not None]
    if not said:
        return Score(None, extras, "no part of the reward has a say: all returned None", notes)
    return Score(sum(said), extras, None, notes)


def _verdict(named: Sequence[tuple[Part, Score]]) -> dict[str, float]:
    """What says whether the completion is right, and under their own names what the other parts say of it.

    Of the parts with `judges`, the first that has a say. If none has it: the first part whose weight is not 0 that
    returns an accuracy, else the first of these; where that one has no say, nobody says what is right. The sum does
    not: it seldom is 1.
    """
    marked = [one for one in named if one[0].judges]
    weighing = [one for one in named if one[0].weight] or list(named)
    judging = [one for one in marked if one[1].reward is not None][:1] if marked else weighing
    said = {part.name: (name, score.extras[name]) for part, score in named for name in VERDICTS if name in score.extras}
    by = next((part.name for part, _ in judging if part.name in said), None)
    found = {f"{part}/{name}": number for part, (name, number) in said.items() if part != by}
    first = judging[0][1].reward if judging else None
    if by is not None:
        found |= [said[by]]
    elif first is not None:
        # One above 1 is no verdict: as it is, for `verdicts` to see that.
        found["accuracy"] = first if first > 1.0 else float(first == 1.0)
    return {**found, JUDGED: float(any(name in found for name in VERDICTS))}
