"""The recipe of a run directory, which names code to run: read once, and only if it and the code are this user's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from asyncrl.errors import UserError
from asyncrl.plugins import is_importable, places
from asyncrl.recipe.load import load
from asyncrl.recipe.schema import Recipe
from asyncrl.storage.run_dir import MOST_BYTES, open_file, require_plain
from asyncrl.storage.writers import FETCHED, of_status, others, others_below, refusal
from asyncrl.task import VERIFIERS


def load_stored(run_dir: Path, overrides: Sequence[str], trust: bool) -> tuple[Recipe, Recipe]:
    """With the overrides, and as it stands. UserError if there is a link in the directory; if someone else may have
    written it, the recipe, or the code and the model that it names, too, but not with `trust`."""
    require_plain(run_dir)
    path = run_dir / "recipe.yaml"
    with open_file(run_dir, path.name) as file:
        if not trust:
            _require_own(run_dir, path, os.fstat(file.fileno()))
        text = file.read(MOST_BYTES).decode(errors="replace")
    changed, stored = load(path, overrides, text), load(path, (), text)
    if not trust and (fault := _fault_of_named(changed)):
        raise refusal(fault)
    return changed, stored


def _fault_of_named(recipe: Recipe) -> str | None:
    """As `others`, of the files of the model, of the program that has a taskset, and of the code and all that it may
    import from where it lies."""
    model = Path(recipe.model)
    if model.is_dir() and (fault := others_below(model, lambda entry: not entry.is_dir())):
        return fault
    for data in (*recipe.sources, *(part.data for part in recipe.eval)):
        if data.title.startswith(VERIFIERS) and (fault := others(Path(str(data.options.get("python", ""))))):
            return fault
    for place in dict.fromkeys(place for spec in recipe.code.values() if ":" in spec for place in places(spec)):
        if fault := others_below(place, is_importable):
            return fault
    return None


def _require_own(run_dir: Path, path: Path, status: os.stat_result) -> None:
    if (run_dir / FETCHED).exists():
        raise UserError(
            f"{run_dir} was fetched from a URL, where others may write, and its recipe names code that would run as "
            "you; look at its recipe.yaml, then say --trust"
        )
    if fault := others(run_dir) or of_status(path, status):
        raise refusal(fault)
