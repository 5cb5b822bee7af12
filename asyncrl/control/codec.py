"""Events and decisions as JSON-able lists [name, field, …], for the journal."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, cast, get_args

import msgspec

from asyncrl.control.messages import Decision, Event

_CLASSES: dict[str, Any] = {
    cls.__name__: cls for cls in (*get_args(Event), *get_args(Decision)) if inspect.isclass(cls)
}


def to_json(message: Event | Decision) -> list[Any]:
    return [type(message).__name__, *dataclasses.astuple(message)]


def from_json(fields: list[Any]) -> Event | Decision:
    """Inverse of `to_json`, from JSON or msgpack. Raises KeyError for a message that does not exist, ValueError for one
    whose fields are of other types."""
    cls = _CLASSES[fields[0]]
    # An older version may have written fewer of them.
    given = zip(dataclasses.fields(cls)[: len(fields) - 1], fields[1:], strict=True)
    return cast(Event | Decision, msgspec.convert({field.name: value for field, value in given}, cls))
