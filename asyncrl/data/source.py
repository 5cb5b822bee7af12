"""Where the rows come from: reasoning_gym, a local file or the hub."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from asyncrl.errors import UserError
from asyncrl.recipe.schema import DataRecipe

_REASONING_GYM = "reasoning_gym:"
_REASONING_GYM_SIZE = 10_000
_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
_MAX_CAUSE_CHARS = 300


class Rows(Protocol):
    """A table that is read row by row; a `datasets.Dataset` is one."""

    @property
    def column_names(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


def load_rows(recipe: DataRecipe, seed: int) -> Rows:
    """The rows that `recipe.path` names; `seed` seeds reasoning_gym unless its options do.

    Nothing is written outside the Hugging Face cache. Raises UserError if there is no such data, an option is
    wrong, or there are no rows.
    """
    suffix = Path(recipe.path).suffix
    is_reasoning_gym = recipe.path.startswith(_REASONING_GYM)
    if recipe.split != "train" and (is_reasoning_gym or suffix in _BUILDERS):
        raise UserError(f"data.split is '{recipe.split}', but {recipe.path} has only 'train'; leave data.split out")
    if is_reasoning_gym:
        return _reasoning_gym(recipe.path.removeprefix(_REASONING_GYM), recipe.options, seed)
    if suffix in _BUILDERS:
        rows = _local_file(Path(recipe.path), _BUILDERS[suffix], recipe.options)
    else:
        rows = _load_dataset(recipe.path, recipe.path, {"split": recipe.split, **recipe.options})
    if len(rows) == 0:
        raise UserError(f"data.path: {recipe.path} has no rows")
    return rows


class _ReasoningGymRows:
    """Made on demand: its metadata may hold what Arrow cannot, so it stays as Python objects."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.column_names = list(dataset[0])

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self._dataset[index]


def _reasoning_gym(name: str, options: dict[str, Any], seed: int) -> Rows:
    from reasoning_gym.factory import DATASETS, create_dataset

    if name not in DATASETS:
        raise UserError(f"data.path: reasoning_gym has no data set '{name}'{_nearest(name, DATASETS)}")
    known = [f.name for f in dataclasses.fields(DATASETS[name][1])]
    for option in options:
        if option not in known:
            raise UserError(f"data.options: reasoning_gym:{name} has no option '{option}'{_nearest(option, known)}")
    try:
        return _ReasoningGymRows(create_dataset(name, **{"size": _REASONING_GYM_SIZE, "seed": seed, **options}))
    except Exception as error:
        raise UserError(f"data.options do not fit reasoning_gym:{name}: {_cause(error)}") from error


def _local_file(path: Path, builder: str, options: dict[str, Any]) -> Rows:
    if not path.is_file():
        raise UserError(f"data.path: there is no file {path}")
    if not path.stat().st_size:
        raise UserError(f"data.path: {path} is empty; write a task a line")
    return _load_dataset(str(path), builder, {"split": "train", "data_files": str(path), **options})


def _load_dataset(shown: str, builder: str, arguments: dict[str, Any]) -> Rows:
    import datasets

    try:
        rows = datasets.load_dataset(builder, **arguments)
    except Exception as error:
        raise UserError(f"data.path: {shown} could not be loaded: {_cause(error)}") from error
    if not isinstance(rows, datasets.Dataset):
        raise UserError(f"data.options: {shown} must load as one table of known length, not {type(rows).__name__}")
    return rows


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _cause(error: BaseException) -> str:
    """`datasets` wraps what went wrong in errors that only say that something did."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text[:_MAX_CAUSE_CHARS]}"
