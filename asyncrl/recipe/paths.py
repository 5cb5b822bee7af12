"""Where the relative paths of a recipe lead: what it names lies beside the file that names it, or else in the working
directory, from which the paths of the command line go anyway.

Once loaded, all of them are relative to the working directory, so that what lies below it can travel with a submitted
run; in a run directory they are absolute, so that it is resumed from anywhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from asyncrl.recipe.data import TABLE_FILES, TEXT_FILES
from asyncrl.recipe.schema import Recipe
from asyncrl.task import MADE

logger = logging.getLogger(__name__)

DATA_FILES = (*TEXT_FILES, *TABLE_FILES)
_CODE = (
    *(f"{part}reward{fn}" for part in ("", "data.", "eval.") for fn in ("", ".fn")),
    *("env", "env.path", "algorithm.loss", "algorithm.advantage", "algorithm.correction"),
    *("rollout.engine", "trainer.backend", "track.also"),
)


def beside(keys: dict[str, Any], file: Path) -> dict[str, Any]:
    """The keys of a recipe file, as its paths are from the working directory. Warns of a path that means one thing
    beside the file and another in the working directory."""

    def found(key: str, path: str, is_file: bool) -> str:
        own = file.parent / path
        if os.path.isabs(path) or "${" in path or not (is_file or own.exists()):
            return path
        here = Path(path)
        if here.exists() and (not own.exists() or own.samefile(here)):
            return path
        if here.exists():
            logger.warning(
                "%s: %s %s is the one beside the recipe, not the one in the working directory", file, key, path
            )
        return os.path.relpath(own)

    return _mapped(keys, found) if file.parent.resolve() != Path.cwd() else keys


def anchored(recipe: Recipe, base_dir: Path) -> Recipe:
    """The recipe with absolute paths; relative ones go from `base_dir`."""

    def found(key: str, path: str, is_file: bool) -> str:
        return os.path.normpath(base_dir / path) if is_file or (base_dir / path).exists() else path

    return Recipe.model_validate(_mapped(recipe.model_dump(), found))


def _mapped(keys: dict[str, Any], found: Callable[[str, str, bool], str]) -> dict[str, Any]:
    """`keys` with every path replaced by what `found(key, path, is_file)` says; not `is_file`: a folder, or the name of
    something elsewhere."""

    def code(key: str, spec: str) -> str:
        file, colon, name = spec.rpartition(":")
        return found(key, file, True) + colon + name if file.endswith(".py") else spec

    def data(key: str, path: str) -> str:
        return path if path.startswith(MADE) else found(key, path, path.endswith(DATA_FILES))

    def rates(key: str, path: str) -> str:
        return found(key, path, True)

    def model(key: str, path: str) -> str:
        return path if path.startswith("random:") else found(key, path, False)

    def program(key: str, path: str) -> str:
        return found(key, path, False) if os.sep in path else path

    teachers = ("algorithm.teacher", "algorithm.teacher.model", "algorithm.teacher.tokenizer")
    models = dict.fromkeys(("model", *teachers), model)
    changes = {**models, **dict.fromkeys(_CODE, code)}
    for place in ("data", "eval.data", "algorithm.sft.data"):
        changes |= {f"{place}.path": data, f"{place}.options.python": program, f"{place}.success_rate.path": rates}
    for key, change in changes.items():
        keys = _changed(keys, key.split("."), lambda value, change=change, key=key: change(key, value))
    return keys


def _changed(keys: Any, place: list[str], change: Callable[[str], str]) -> Any:
    """A copy in which the text at a place, or every text of a list there, is changed; what is not there stays so. In a
    list on the way that is so of each item."""
    if isinstance(keys, list):
        return [_changed(item, place, change) for item in keys]
    if place:
        # The name that a server has for a model is no path.
        if not isinstance(keys, dict) or place[0] not in keys or (place == ["model"] and keys.get("url")):
            return keys
        return {**keys, place[0]: _changed(keys[place[0]], place[1:], change)}
    return change(keys) if isinstance(keys, str) else keys


def changed_keys(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """Keys, with dots, whose values differ, and both; a path is where it leads from the working directory."""
    was, is_now = (dict(leaves(anchored(one, Path.cwd()).model_dump())) for one in (before, now))
    keys = [key for key in {**was, **is_now} if was.get(key) != is_now.get(key)]
    return {key: (was.get(key), is_now.get(key)) for key in keys}


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of nested mappings, with dots, and their values."""
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from leaves(part, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
