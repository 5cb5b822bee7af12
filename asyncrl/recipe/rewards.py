"""What a recipe may say of the processes that run its reward."""

from __future__ import annotations

from typing import Any

from asyncrl.recipe.part import Gib, Part, Processes, Seconds


class RewardsRecipe(Part):
    workers: Processes = 1
    """Reward processes per generator."""
    timeout_s: Seconds = 30.0
    """A reward call that takes longer is killed; its trajectories are masked and counted."""
    kwargs: dict[str, Any] = {}
    """Further keyword arguments of every call (verl's `reward_kwargs`); of a class, of its constructor."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text that the reward gets; false for a reward that looks for such marks."""
    memory_gib: Gib | None = None
    """What a reward process and all that it starts may hold together, in GiB; with more they are killed, as after
    timeout_s. Default: half of the machine's memory."""
    file_gib: Gib = 16.0
    """No file that they write may be longer, in GiB."""
