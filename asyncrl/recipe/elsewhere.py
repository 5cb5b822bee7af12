"""What TRL, verl, OpenRLHF and slime call things, and what they are called here: one table for the answer to a wrong
key, for `asyncrl import`, and for docs/from_trl.md and docs/from_verl.md."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from asyncrl.recipe.names_others import COMMON, OPENRLHF, SLIME
from asyncrl.recipe.names_trl import TRL
from asyncrl.recipe.names_verl import VERL

_MARKS = ("moot", "none")


@dataclass(frozen=True)
class Row:
    """Names of another system that mean one thing here."""

    names: tuple[str, ...]
    keys: tuple[str, ...]
    """Of a recipe; none: `kind` says why."""
    remark: str = ""
    kind: Literal["key", "moot", "none"] = "key"
    """`moot`: there is nothing to set; `none`: there is nothing like it."""


@functools.cache
def table(system: str) -> tuple[Row, ...]:
    """Of `trl`, `verl`, `openrlhf`, `slime`, or `common`."""
    texts = {"trl": TRL, "verl": VERL, "openrlhf": OPENRLHF, "slime": SLIME, "common": COMMON}
    return tuple(map(_row, texts[system].strip().splitlines()))


def _row(line: str) -> Row:
    names, ours, remark = (part.strip() for part in line.split("|"))
    keys = () if ours in _MARKS else tuple(key.strip() for key in ours.split(","))
    kind: Literal["key", "moot", "none"] = "moot" if ours == "moot" else "none" if ours == "none" else "key"
    return Row(tuple(_spelt_out(names)), keys, remark, kind)


def _spelt_out(names: str) -> Iterator[str]:
    """`a.{x,y}, b` as a.x, a.y, b."""
    for name in re.split(r",\s*(?![^{]*\})", names):
        found = re.fullmatch(r"(.*)\{(.*)\}(.*)", name)
        yield from (f"{found[1]}{one}{found[3]}" for one in found[2].split(",")) if found else [name]


@functools.cache
def find(system: str, name: str) -> Row | None:
    """Of a name, or of the longest `PART.*` above it."""
    exact = {one: row for row in table(system) for one in row.names}
    if name in exact:
        return exact[name]
    parts = name.split(".")
    above = (".".join(parts[:number]) + ".*" for number in range(len(parts) - 1, 0, -1))
    return next((exact[one] for one in above if one in exact), None)


_TITLES = {"trl": "TRL", "verl": "verl", "openrlhf": "OpenRLHF", "slime": "slime"}


def answer(key: str) -> str | None:
    """What to say of a key that is none here, but is one of another system; None: it is of none that is known.

    Of verl the last parts are enough, as in `rollout.n`.
    """
    name = key.replace("-", "_")
    bare = name.rpartition(".")[2]
    if bare != name and (row := find("verl", name)):
        return _sentence(row, "verl", name)
    for system in ("trl", "openrlhf", "slime", "common"):
        for one in dict.fromkeys((name, bare)):
            if row := find(system, one):
                return _sentence(row, _TITLES.get(system), one)
    row = find("verl", name) or next((r for r in table("verl") for n in r.names if n.endswith(f".{name}")), None)
    return _sentence(row, "verl", name) if row else None


def _sentence(row: Row, title: str | None, name: str) -> str:
    whose = f"{title}'s {name}" if title else name
    plain = row.remark.replace("`", "")
    if row.kind == "none":
        return f"; {whose} has no equal here: {plain}"
    if row.kind == "moot":
        return f"; {whose} is not to be set here" + (f": {plain}" if plain else "")
    if row.keys[0].rpartition(".")[2] == name:
        return f"; did you mean {row.keys[0]}?"
    return f"; {whose} is {' and '.join(row.keys)} here" + (f" ({plain})" if plain else "")
