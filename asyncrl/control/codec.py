"""Events and decisions as JSON-able lists [name, field, …], for the journal."""

from __future__ import annotations

import inspect
from dataclasses import astuple
from typing import Any, cast, get_args

from asyncrl.control.messages import Decision, Event, Train

_CLASSES = {cls.__name__: cls for cls in (*get_args(Event), *get_args(Decision)) if inspect.isclass(cls)}


def to_json(message: Event | Decision) -> list[Any]:
    return [type(message).__name__, *astuple(message)]


def from_json(fields: list[Any]) -> Event | Decision:
    """Inverse of `to_json`, from JSON or msgpack. Raises KeyError for a message that does not exist."""
    cls = _CLASSES[fields[0]]
    if cls is Train:
        step, groups, min_version = fields[1:]
        return Train(step, tuple((task, attempt) for task, attempt in groups), min_version)
    return cast(Event | Decision, cls(*fields[1:]))
