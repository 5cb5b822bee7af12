"""What is carried over from another system's configuration, and line by line what is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from asyncrl.drafts.written import printable, put
from asyncrl.recipe import elsewhere

_MOST_CHARS = 60
_NO_VALUE = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError)
"""What a rule raises of a value of another kind, such as text for a number."""
_NULL = "it is empty: as if it were not there"


class Unresolved:
    """A value that is only known when their script runs."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Lost(Exception):
    """Why a value cannot be carried over."""


Rule = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Of their values by name, all that are given, to ours by key. Raises Lost."""


@dataclass
class Carried:
    """A recipe that comes to be; every name that was given is in `kept`, `lost` or `moot` in the end."""

    system: str
    given: dict[str, Any]
    """Their names, and values; `Unresolved` for what only a run of theirs would know."""
    overridden: Mapping[str, Any] = field(default_factory=dict)
    """Keys that the command sets, over all that is carried over."""
    keys: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    moot: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any, source: str = "") -> None:
        put(self.keys, key, value)
        if source:
            self.comments[key] = source

    def value(self, name: str, default: Any = None) -> Any:
        """What was given; the default for what only a run would know."""
        found = self.given.get(name, default)
        return default if isinstance(found, Unresolved) else found

    def number(self, name: str, default: float) -> Any:
        """The same, of numbers; the default for what is none."""
        found = self.value(name, default)
        return found if isinstance(found, int | float) and not isinstance(found, bool) else default

    def key(self, path: str, default: Any = None) -> Any:
        """A key of the recipe, as far as it is known: as the command says, else as it was carried over."""
        for keys in (self.overridden, self.keys):
            found: Any = keys
            for part in path.split("."):
                found = found.get(part) if isinstance(found, Mapping) else None
            if found is not None:
                return found
        return default

    def apply(self, names: tuple[str, ...], rule: Rule, always: bool = False, nulls: tuple[str, ...] = ()) -> None:
        """Carries over what is given of the names, together. `always`: their defaults differ from ours; `nulls`: names
        of which null means something other than that they are not given."""
        there = [name for name in names if name in self.given]
        known = {name: value for name, value in self.given.items() if value is not None or name in nulls}
        self.moot |= {name: _NULL for name in there if name not in known}
        known = {name: value for name, value in known.items() if not isinstance(value, Unresolved)}
        for name in there:
            if isinstance(self.given[name], Unresolved):
                self.lost[name] = "its value is only known when that script runs; say the key of the recipe"
        there = [name for name in there if name in known]
        if not there and not always:
            return
        source = ", ".join(self.said(name, whole=False) for name in there) or self._default(names)
        try:
            found = rule(known)
        except (Lost, *_NO_VALUE) as reason:
            if not there:
                there = [names[-1]]
                self.given[names[-1]] = Unresolved("the default")
            why = str(reason) if isinstance(reason, Lost) else "that is no value of it; say the key of the recipe"
            self.lost |= dict.fromkeys(there, why)
            return
        for place, (key, value) in enumerate(found.items()):
            self.put(key, value, "" if place else source)
        self.kept |= {name: ", ".join(found) or "as it is here by default" for name in there}

    def _default(self, names: tuple[str, ...]) -> str:
        """What is said beside a default of theirs."""
        said = [name for name in names if name in self.given and name not in self.moot]
        of = f", in the place of {said[0].rpartition('.')[2]}" if said else ""
        return f"as {self.system} has it by default{of}"

    def finish(self) -> None:
        """Says of every other name what the table says."""
        for name, value in self.given.items():
            if name in self.kept or name in self.lost or name in self.moot:
                continue
            row = elsewhere.find(self.system.lower(), name)
            if value == {} or (value is None and row is not None):
                self.moot[name] = _NULL
            elif row is None:
                self.lost[name] = "the name is not known here; docs/reference.md has all keys"
            elif row.kind == "moot":
                self.moot[name] = row.remark.replace("`", "")
            elif off := self._switch(name):
                self.moot[name] = f"{off} is false there"
            elif row.kind == "none" and _is_off(name, value):
                self.moot[name] = "off there, as here"
            elif row.kind == "none":
                self.lost[name] = row.remark.replace("`", "")
            else:
                self.lost[name] = f"by hand: {', '.join(row.keys)} ({row.remark.replace('`', '')})"

    def _switch(self, name: str) -> str | None:
        """The `enable` of a part above a name that switches it off; None: there is none."""
        parts = name.split(".")
        above = (".".join(parts[:number]) for number in range(len(parts) - 1, 0, -1))
        switches = (f"{part}.{word}" for part in above for word in ("enable", "enabled"))
        return next((switch for switch in switches if self.given.get(switch, True) in (False, None)), None)

    def said(self, name: str, whole: bool = True) -> str:
        """`name=value`, short; not `whole`: the name without the parts above it."""
        text = printable(f"{name if whole else name.rpartition('.')[2]}={self.given[name]!r}")
        return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}..."

    def not_carried(self) -> Iterator[str]:
        """A line for each name."""
        for name, why in self.lost.items():
            yield f"{self.said(name)}: {why}"

    def lines(self) -> Iterator[str]:
        """What was done with each name."""
        for name, keys in self.kept.items():
            yield f"kept       {self.said(name)} -> {printable(keys)}"
        for name, why in self.moot.items():
            yield f"not needed {self.said(name)}" + (f": {why}" if why else "")
        for line in self.not_carried():
            yield f"LOST       {line}"


def _is_off(name: str, value: Any) -> bool:
    neutral = {"top_p": 1, "repetition_penalty": 1, "top_k": -1}
    return value in (None, False, 0, "", [], {}) or value == neutral.get(name.rpartition(".")[2], object())


def to(key: str, among: Mapping[Any, Any] | None = None, why: str = "") -> Callable[[str], Rule]:
    """Of one name: its value under our key, or what `among` makes of it."""

    def of(name: str) -> Rule:
        def rule(given: Mapping[str, Any]) -> Mapping[str, Any]:
            value = given[name]
            if value is None:
                return {}
            if among is None:
                return {key: value}
            if value not in among:
                raise Lost(why or f"{key} has no such value")
            return {key: among[value]}

        return rule

    return of


def text(key: str, name: str) -> Rule:
    """Of one name: its value as text, as a number may be a name too."""
    return lambda given: {key: str(given[name])}


def keep_last(name: str) -> Rule:
    """Of how many checkpoints are kept, where null, 0 or -1 is: all."""

    def rule(given: Mapping[str, Any]) -> Mapping[str, Any]:
        if (given[name] or 0) < 1:
            raise Lost("all checkpoints are kept there; here there is a bound: say checkpoint.keep_last")
        return {"checkpoint.keep_last": given[name]}

    return rule


def of_steps(carried: Carried, share: float) -> int:
    """A share of the training steps. Raises Lost if they are not known."""
    steps = carried.key("max_steps")
    if "max_epochs" in carried.overridden or not isinstance(steps, int):
        raise Lost("how many steps there are is not known before the rows are counted; say trainer.warmup_steps")
    return math.ceil(share * steps)
