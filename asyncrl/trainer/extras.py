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

_POSITIONAL = {"logprobs", "behaviour_logprobs", "prox_logprobs", "advantages", "mask"}


class Extras:
    """Those that a function's parameters name, which are neither `given` nor a loss's five tensors."""

    def __init__(self, key: str, spec: str, function: Callable[..., Any], given: Collection[str]) -> None:
        self._key, self._spec = key, spec
        self._names: dict[str, bool] = {}
        """Whether there is a default."""
        for name, parameter in list(inspect.signature(function).parameters.items()):
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if ":" in spec and named and name not in given and name not in _POSITIONAL:
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
