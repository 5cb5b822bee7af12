"""What the controller is told once, at the start of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FIXED_LAG = ("one_step", "stale_k")
"""Policies under which every batch has one age."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The recipe keys of the same names. Raises ValueError if they do not go together."""

    groups_per_step: int
    """P: groups trained in one step."""
    max_staleness: int | float
    """S: admission lets a group be trained at most this many updates after its start; a fraction: so large a share
    of a batch may be one update older (policy bounded, on_stale wait)."""
    max_steps: int
    """Steps of the run."""
    selection_window: int = 1
    """W: a finished group may overtake at most W - 1 older ones."""
    on_stale: Literal["wait", "drop", "mask"] = "wait"
    """What happens to a straggler: wait for it, restart it, or train only its tokens of age <= S."""
    policy: Literal["bounded", "one_step", "stale_k", "sync"] = "bounded"
    """Ages of a batch: at most the bound; exactly one update, or exactly S (the first batches: less); or none."""
    push_lag: int = 1
    """A version is published once it is so many updates ahead of the live one."""
    backup_groups: int = 0
    """Groups in flight beyond what is needed: a batch closes with the first P that finish."""
    groups_per_replica: int = 0
    """Groups that a generator works on at a time; 0: any number. The others wait for the first that has room."""
    tokens_per_group: int
    """Routing's estimate of a group's tokens until the first group has finished."""

    def __post_init__(self) -> None:
        for name, least in {
            "groups_per_step": 1,
            "max_staleness": 0,
            "max_steps": 1,
            "selection_window": 1,
            "push_lag": 1,
            "backup_groups": 0,
            "groups_per_replica": 0,
            "tokens_per_group": 1,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for fault in (self._policy_fault(), self._window_fault(), self._backup_fault(), self._push_fault()):
            if fault:
                raise ValueError(fault)

    def _policy_fault(self) -> str:
        S, policy = self.max_staleness, self.policy
        if policy == "sync" and S != 0:
            return f"policy sync needs max_staleness 0, not {S}; change one of the two"
        if policy == "one_step" and S != 1:
            return f"policy one_step needs max_staleness 1, not {S}; change one of the two"
        if policy == "stale_k" and (S < 1 or S % 1):
            return f"policy stale_k needs a whole max_staleness of at least 1, not {S}; change one of the two"
        if S % 1 and self.on_stale != "wait":
            return f"max_staleness {S} needs on_stale wait, not {self.on_stale}; set it to {int(S)} or {int(S) + 1}"
        return ""

    def _window_fault(self) -> str:
        if self.selection_window == 1 or (self.policy == "bounded" and self.on_stale == "wait"):
            return ""
        return (
            f"selection_window {self.selection_window} needs policy bounded and on_stale wait, "
            f"not {self.policy} and {self.on_stale}; set selection_window to 1"
        )

    def _backup_fault(self) -> str:
        if self.backup_groups == 0 or (self.on_stale == "drop" and self.policy not in FIXED_LAG):
            return ""
        return (
            f"backup_groups {self.backup_groups} needs on_stale drop and policy bounded or sync, "
            f"not {self.on_stale} and {self.policy}; set backup_groups to 0"
        )

    def _push_fault(self) -> str:
        most = 1 if self.policy in FIXED_LAG else int(self.max_staleness) + 1
        if self.push_lag <= most:
            return ""
        return (
            f"push_lag {self.push_lag} would leave no slot for the next batch under max_staleness "
            f"{self.max_staleness} and policy {self.policy}; set push_lag to at most {most}"
        )
