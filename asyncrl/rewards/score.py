"""What goes into a reward function and what comes out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, fields, replace
from typing import Any

from asyncrl.metric_names import REWARD_KEYS, VERDICTS
from asyncrl.plugins import encodable, one_line, shown

_MAX_ERROR_CHARS = _MAX_NOTE_CHARS = 500
RESERVED = tuple(key.partition("/")[2] for key in REWARD_KEYS)
"""Under `reward/` in the records."""
NO_LISTS = (str, bytes, bytearray, Mapping, Set)
"""Have a length, but not a value for each completion, in order."""


@dataclass(frozen=True)
class TrainerState:
    """What is known here of TRL's `trainer_state`. Another of its fields is an error that names these."""

    global_step: int = 0
    """Updates of the weights that the generator holds while the reward is called."""
    max_steps: int = 0
    """Of the run."""
    epoch: float = 0.0
    """Passes over the data when the task was drawn."""

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(field.name for field in fields(TrainerState))
        raise AttributeError(f"trainer_state has no '{name}' here, only {known}")


@dataclass(frozen=True)
class RewardRequest:
    """Completions of one task, to be scored."""

    prompt: str | list[dict[str, Any]]
    """As the model saw it, before tokenising: text or chat messages."""
    completions: list[str]
    completion_ids: list[list[int]]
    """Token ids of each completion."""
    finish_reasons: list[str]
    """Of each completion: `stop`, or `length` if it was cut off."""
    row: dict[str, Any]
    """All columns of the task's row."""
    state: TrainerState = TrainerState()
    source: str = ""
    """Name of the data source that the task is of; empty: there is one."""

    def split(self) -> list[RewardRequest]:
        """One request per completion."""
        return [
            replace(self, completions=[text], completion_ids=[ids], finish_reasons=[reason])
            for text, ids, reason in zip(self.completions, self.completion_ids, self.finish_reasons, strict=True)
        ]


@dataclass(frozen=True)
class Score:
    """Outcome for one completion: a finite reward, or None and the reason (I7)."""

    reward: float | None
    extras: dict[str, float] = field(default_factory=dict)
    """Further finite numbers: of a reward that returned a dict, or logged."""
    error: str | None = None
    notes: dict[str, str] = field(default_factory=dict)
    """Texts that the reward returned or logged, for people."""
    abstains: bool = False
    """It returned None: beside other parts of a reward it has no say, alone it failed."""

    def __post_init__(self) -> None:
        """Its texts can be written down, whatever the JSON of a model had."""
        vars(self).update(
            extras={encodable(name): number for name, number in self.extras.items()},
            error=self.error if self.error is None else encodable(self.error),
            notes={encodable(column): encodable(text) for column, text in self.notes.items()},
        )


def failed(error: str) -> Score:
    """A reward that could not be had; never a zero."""
    return Score(None, error=error[:_MAX_ERROR_CHARS])


def to_score(value: Any) -> Score:
    """Reads what a reward function returned for one completion: a number, a dict with `reward` or `score`, or, of one
    that judges several, the exception that this one failed with."""
    if isinstance(value, Exception):
        return failed(one_line(value))
    if value is None:
        return Score(None, error="the reward is None, not a finite number", abstains=True)
    if not isinstance(value, dict):
        reward = finite(value)
        return failed(f"the reward is {shown(value, repr)}, not a finite number") if reward is None else Score(reward)
    key = "reward" if "reward" in value else "score"
    if key not in value:
        return failed(f"the dict returned has neither 'reward' nor 'score', only {', '.join(map(shown, value))}")
    if taken := [name for name in RESERVED if name in value]:
        return failed(f"the dict returned has the key '{taken[0]}', which the records use themselves; rename it")
    main = to_score(value[key]) if not isinstance(value[key], dict) else failed(f"'{key}' is a dict")
    extras, notes = sorted_out({name: other for name, other in value.items() if name != key})
    if wrong := [name for name in VERDICTS if name in notes]:
        return failed(f"'{wrong[0]}' is {notes[wrong[0]]}, not a finite number")
    return Score(main.reward, extras, main.error, notes, main.abstains)


def sorted_out(values: Mapping[Any, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """By name what is a finite number, and as text for people all else that is there."""
    numbers = {shown(name): finite(value) for name, value in values.items()}
    texts = {shown(name): shown(value)[:_MAX_NOTE_CHARS] for name, value in values.items() if value is not None}
    extras = {name: number for name, number in numbers.items() if number is not None}
    return extras, {name: text for name, text in texts.items() if name not in extras}


def finite(value: Any) -> float | None:
    """The value as a finite number; None if it is none."""
    # By protocol, not by type: numpy scalars, Fraction and 0-d tensors count, a string of digits does not.
    if not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None
