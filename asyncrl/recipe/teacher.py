"""The part of a recipe that names a teacher: a frozen model that says what it thinks of every sampled token."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from asyncrl.recipe.part import Part


class TeacherRecipe(Part):
    model: str
    """Local directory or hub name, of a model with the student's token ids; frozen, it lies beside the trained one."""
    source: str = ""
    """Name of the data source whose tasks it teaches; default: those that have no teacher of their own."""


def _each(value: Any) -> Any:
    """One teacher as a list, none as an empty one; a text is its model."""
    found = value if isinstance(value, list) else [] if value is None else [value]
    return [{"model": one} if isinstance(one, str) else one for one in found]


Teachers = Annotated[list[TeacherRecipe], BeforeValidator(_each)]


def teacher_of(teachers: list[TeacherRecipe], source: str) -> int | None:
    """Place of the one that teaches the tasks of a source; None: nobody does."""
    sources = [teacher.source for teacher in teachers]
    return next((sources.index(name) for name in (source, "") if name in sources), None)
