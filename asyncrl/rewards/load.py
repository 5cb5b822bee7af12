"""From the `reward:` line of a recipe to a reward function."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asyncrl.errors import UserError
from asyncrl.plugins import load_object
from asyncrl.rewards.function import RewardFunction, recognise
from asyncrl.rewards.parts import Part


def load_part(part: Part, base_dir: Path) -> RewardFunction:
    """As `load`, which see."""
    return load(part.fn, base_dir, part.dataset, part.kwargs, part.key)


def load(
    spec: str,
    base_dir: Path,
    dataset: str = "",
    kwargs: Mapping[str, Any] | None = None,
    key: str = "rewards.kwargs",
) -> RewardFunction:
    """Imports `package.module:name` or `./file.py:name` (relative to `base_dir`) and recognises its signature.

    `dataset` is what verl's functions get as data_source if the row has none; `kwargs` are further arguments, under
    `key` of the recipe.
    Raises UserError if it does not import, is not there, is not callable, has an unknown signature, or does not take
    the further arguments.
    """
    call = load_object(spec, base_dir, "reward")
    if not callable(call):
        raise UserError(f"reward '{spec}' is of type {type(call).__name__}, not a function")
    return recognise(call, spec, dataset, kwargs, key)
