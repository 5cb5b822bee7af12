"""What every part of a recipe has in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

PositiveInt = Annotated[int, Field(gt=0, le=10**9)]
"""A number of things: with more digits it is a slip, and libraries' integers have no room for it."""

NonNegativeInt = Annotated[int, Field(ge=0, le=10**9)]
Processes = Annotated[int, Field(gt=0, le=10_000)]
Seconds = Annotated[float, Field(gt=0, le=10**6)]
"""Eleven days: poll(2) waits for at most 2^31 ms."""
Gib = Annotated[float, Field(gt=0, le=10**7)]


class Part(BaseModel):
    # Strict: YAML has types already, and `max_steps: true` or "4" is a slip.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def gpus(value: float) -> float:
    """A number of GPUs: a share of one, or whole ones, which are ints. PydanticCustomError otherwise."""
    if value > 1 and value != int(value):
        raise PydanticCustomError("gpus", "neither a share of one GPU nor whole ones")
    return int(value) if value == int(value) else value


Gpus = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False), AfterValidator(gpus)]


def no_range(value: Any) -> Any:
    """What is no `{min, max}` by now is none. PydanticCustomError for other mappings."""
    if isinstance(value, dict):
        raise PydanticCustomError("replicas", "neither a number nor a range")
    return value


def listed(value: Any) -> Any:
    """One text or number as the list of it."""
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


ONE, LIST = "[one]", "[list]"
"""Which of both a value is, where a recipe may have either."""


def one_or_list(value: Any) -> str:
    """For pydantic's `Discriminator`: then the faults are those of the kind that is meant."""
    return LIST if isinstance(value, list) else ONE
