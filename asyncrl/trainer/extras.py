"""What a loss or an advantage of one's own asks for by name: numbers that came with the rewards.

They are in the journal with the trajectory, so that a run is trained again as it was; a column of the data comes by way
of the reward, which has the row: `return {"reward": ..., "difficulty": difficulty}`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from asyncrl.errors import UserError


class Extras:
    """Those that a user's function names by a parameter: one that is not among the first `num_positional`, and no other
    keyword that it is `given`."""

    def __init__(
        self, key: str, spec: str, function: Callable[..., Any], num_positional: int, given: Collection[str] = ()
    ) -> None:
        self._key, self._spec = key, spec
        self._names: dict[str, bool] = {}
        """Whether there is a default."""
        if ":" not in spec:  # one of ours
            return
        for name, parameter in list(inspect.signature(function).parameters.items())[num_positional:]:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name not in given:
                self._names[name] = parameter.default is not parameter.empty

    def of(self, extras: Sequence[Mapping[str, float]]) -> dict[str, torch.Tensor]:
        """float32 [n] of each name, of the n trajectories with these extras. Raises UserError if one lacks a name
        without a default."""
        found = {}
        for name, has_default in self._names.items():
            if all(name in own for own in extras):
                found[name] = torch.tensor([own[name] for own in extras], dtype=torch.float32)
            elif not has_default:
                raise UserError(
                    f"{self._key} '{self._spec}' takes '{name}', which a reward did not give; return a dict with "
                    f"'reward' and '{name}' from the reward, or give the parameter a default"
                )
        return found
