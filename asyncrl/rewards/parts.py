"""A reward of several parts: their weighted sum, with TRL's meaning of `reward_funcs` and `reward_weights`.

A part that returns None for a completion has no say in it. If none has one there is no reward, which is never a zero
(I7); nor is there if one of them fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncrl.rewards.score import Score, failed

VERDICTS = ("accuracy", "acc")
"""Extras that say what is right; they keep their names."""


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
        for name, number in score.extras.items():
            extras.setdefault(name if name in VERDICTS else f"{part.name}/{name}", number)
        notes |= {f"{part.name}/{name}": text for name, text in score.notes.items()}
    first = scores[0].reward
    if first is not None and first <= 1.0 and not any(name in extras for name in VERDICTS):
        # The sum seldom is 1, so it does not tell.
        extras["accuracy"] = float(first == 1.0)
    if wrong := [f"{part.name}: {score.error}" for part, score in named if score.error and not score.abstains]:
        return Score(None, extras, failed("; ".join(wrong)).error, notes)
    said = [part.weight * score.reward for part, score in named if score.reward is not None]
    if not said:
        return Score(None, extras, "no part of the reward has a say: all returned None", notes)
    return Score(sum(said), extras, None, notes)
