"""A run as the list of what happened in it: the controller is a function of that list.

    snapshot   the whole state, at the head of every part of the list; its settings may be new
    event      what the driver reported
    decisions  what the controller answered; made again when the list is read, and compared

So a run that broke off resumes where it stood, and a finished one can be checked from its first entry on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import msgspec

from asyncrl.control.controller import Controller
from asyncrl.control.messages import Decision, Event
from asyncrl.control.settings import Settings
from asyncrl.control.staleness import slots

_MOST_SLOTS = 10**5


@dataclass(frozen=True)
class Snapshot:
    state: dict[str, Any]


class _State(msgspec.Struct):
    """Of a controller, as far as others count with it."""

    settings: Settings
    steps_done: Annotated[int, msgspec.Meta(ge=0)]
    live: int
    publishing: int | None


@dataclass(frozen=True)
class Decisions:
    """All that one `decide` returned."""

    decisions: tuple[Decision, ...]


Entry = Snapshot | Decisions | Event


class HistoryError(RuntimeError):
    """The entries contradict each other: the journal is of another version of asyncrl, or not of one run."""


def replay(entries: Iterable[Entry]) -> Controller:
    """The controller at the end of the list, which must begin with a snapshot.

    Raises HistoryError if a decision made again, or a later snapshot, differs from the one that was written, or if no
    controller could have had such a history.
    """
    try:
        return _replay(entries)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError) as error:
        raise HistoryError(f"no run has such a history: {type(error).__name__}: {error}") from error


def _replay(entries: Iterable[Entry]) -> Controller:
    controller: Controller | None = None
    for number, written in enumerate(entries):
        entry = _today(written) if isinstance(written, Snapshot) else written
        if controller is None:
            if not isinstance(entry, Snapshot):
                raise HistoryError("the history does not begin with a snapshot")
            _settings(entry)
            controller = Controller.restore(entry.state)
        elif isinstance(entry, Snapshot):
            # Built anew, they have the keys that came after the entry was written.
            settings = _settings(entry)
            if asdict(settings) != controller.state()["settings"]:
                controller.change(settings)
            _compare(number, controller.state(), entry.state | {"settings": asdict(settings)})
        elif isinstance(entry, Decisions):
            _compare(number, tuple(controller.decide()), entry.decisions)
        else:
            controller.handle(entry)
    if controller is None:
        raise HistoryError("the history is empty")
    return controller


def _today(snapshot: Snapshot) -> Snapshot:
    """With the names that settings have now."""
    settings = dict(snapshot.state["settings"])
    if "over_age" in settings:
        settings["on_stale"] = settings.pop("over_age")
    return Snapshot({**snapshot.state, "settings": settings})


def _settings(snapshot: Snapshot) -> Settings:
    settings = msgspec.convert(snapshot.state, _State).settings
    if not slots(settings) <= _MOST_SLOTS:
        raise HistoryError(f"its settings have more than {_MOST_SLOTS} groups in flight")
    return settings


def _compare(number: int, now: Any, then: Any) -> None:
    if _plain(now) != _plain(then):
        raise HistoryError(f"entry {number} of the history says {then}, but what came before it leads to {now}")


def _plain(value: Any) -> Any:
    """Without the difference between lists and tuples, which JSON does not keep."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
