"""All keys of a recipe, and which one is meant by a key that is none."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from asyncrl.recipe import elsewhere
from asyncrl.recipe.schema import Recipe


@functools.cache
def fields() -> dict[str, FieldInfo]:
    """By key with dots, in the order of the schema."""
    return dict(_keys(Recipe, ""))


@functools.cache
def every() -> tuple[str, ...]:
    """With dots, in the order of the schema."""
    return tuple(fields())


def type_of(field: FieldInfo) -> str:
    """What a key may be, in words: its choices, or its type and bounds."""
    return _kind(field.annotation, field.metadata)


def _kind(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0], [*inner[1:], *metadata])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, UnionType):
        kinds = dict.fromkeys(_kind(one, metadata) for one in inner if one is not type(None))
        return " or ".join([*kinds, *(["null"] if type(None) in inner else [])])
    if origin is list:
        return f"list of {_kind(inner[0]).replace('a mapping', 'mappings')}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "a mapping"
    kind = {int: "whole number", float: "number", bool: "true or false", str: "text"}.get(annotation, "anything")
    bounds = [bound for item in metadata for bound in _bounds(item)]
    return " ".join([kind, *bounds]) if annotation in (int, float) else kind


def _bounds(item: Any) -> Iterator[str]:
    """Of a constraint; a large one is there to catch slips, and not worth a word."""
    for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        bound = getattr(item, name, None)
        if bound is not None and bound < 10**4:
            yield f"{sign} {bound:g}"
    for one in getattr(item, "metadata", ()):
        yield from _bounds(one)


def whole(key: str, value: Any) -> str:
    """A key that is none with what is said below it, if that makes it another system's: `actor_rollout_ref` is
    refused, and `actor_rollout_ref.rollout.n` was said."""
    longer = key
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        longer = f"{longer}.{name}"
    return longer if longer != key and elsewhere.answer(longer) else key


def meant(key: str) -> str:
    """After a key that is none: what another system's name is here, a key of the same part that looks like it, one of
    that name elsewhere, or else what the part has."""
    key = ".".join(part for part in key.split(".") if not part.isdecimal())  # of a place in a list
    parents, _, name = key.rpartition(".")
    keys = every()
    if key in keys:
        return f" here: it is one where {parents} is a list of parts"
    if said := elsewhere.answer(key):
        return said
    siblings = [k for k in keys if k.rpartition(".")[0] == parents]
    by_name = {k.rpartition(".")[2]: k for k in [*keys, *siblings]}
    # Everything looks like two letters.
    near_enough = 0.6 if len(name) > 2 else 0.8
    for names, cutoff in (([k.rpartition(".")[2] for k in siblings], near_enough), (list(by_name), 0.75)):
        if near := difflib.get_close_matches(name, names, n=1, cutoff=cutoff):
            return f"; did you mean {by_name[near[0]]}?"
    return f"; {parents or 'a recipe'} has the keys {', '.join(k.rpartition('.')[2] for k in siblings)}"


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for part in _named_in(field.annotation):
            yield from _keys(part, f"{prefix}{name}.")


def _named_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The parts that a type names: itself, or those of `Part | None` or `list[Part]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _named_in(argument)
