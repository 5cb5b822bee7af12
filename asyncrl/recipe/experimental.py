"""The part of a recipe for those who study schedules and objectives, rather than train with them."""

from __future__ import annotations

from typing import Literal

from asyncrl.recipe.part import NonNegativeInt, Part, PositiveInt


class ExperimentalRecipe(Part):
    policy: Literal["one_step", "stale_k"] | None = None
    """Takes the place of `policy`. `one_step`: every batch exactly one update old. `stale_k`: exactly max_staleness, to
    test objectives."""
    selection_window: PositiveInt = 1
    """W: a finished group may overtake at most W - 1 older ones; the bound becomes S + ceil((W - 1)/P)."""
    backup_groups: NonNegativeInt = 0
    """Groups in flight beyond what is needed: a batch closes with the first that finish, the stragglers that become
    too old are restarted. Needs on_stale drop."""
    groups_per_replica: NonNegativeInt = 0
    """Groups that a replica works on at a time; the next one goes to the first that has room, with the newest weights.
    For `on_stale: drop` with engines that are full: twice what one runs at once. 0: any number."""
    push_lag: PositiveInt = 1
    """Push only versions that are so many updates ahead of the live one; at most max_staleness + 1."""
