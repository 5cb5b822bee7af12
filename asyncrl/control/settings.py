"""What the controller is told once, at the start of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The recipe keys of the same names. Raises ValueError if they do not go together."""

    groups_per_step: int
    """P: groups trained in one step."""
    max_staleness: int
    """S: admission lets a group be trained at most this many updates after its start."""
    max_steps: int
    """Steps of the run."""
    selection_window: int = 1
    """W: a finished group may overtake at most W - 1 older ones."""
    over_age: Literal["wait", "drop", "mask"] = "wait"
    """What happens to a straggler: wait for it, restart it, or train only its tokens of age <= S."""
    policy: Literal["bounded", "one_step", "sync"] = "bounded"
    """Ages of a batch: at most the bound, exactly one update (the first batch: none), or none."""
    tokens_per_group: int
    """Routing's estimate of a group's tokens until the first group has finished."""

    def __post_init__(self) -> None:
        for name, least in {
            "groups_per_step": 1,
            "max_staleness": 0,
            "max_steps": 1,
            "selection_window": 1,
            "tokens_per_group": 1,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.policy == "sync" and self.max_staleness != 0:
            raise ValueError(f"policy sync needs max_staleness 0, not {self.max_staleness}; change one of the two")
        if self.policy == "one_step" and self.max_staleness != 1:
            raise ValueError(f"policy one_step needs max_staleness 1, not {self.max_staleness}; change one of the two")
        if self.selection_window > 1 and (self.policy != "bounded" or self.over_age != "wait"):
            raise ValueError(
                f"selection_window {self.selection_window} needs policy bounded and over_age wait, "
                f"not {self.policy} and {self.over_age}; set selection_window to 1"
            )
