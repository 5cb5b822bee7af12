"""Where the rows come from: reasoning_gym, a taskset of verifiers, a local file or the hub."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol

from asyncrl.data.bounds import check_arrow, check_parquet
from asyncrl.data.files import FileRows
from asyncrl.data.gym_modules import data_sets
from asyncrl.envs.verifiers_tasksets import load_tasks
from asyncrl.errors import UserError
from asyncrl.recipe.data import TABLE_FILES, TEXT_FILES, DataRecipe
from asyncrl.task import REASONING_GYM, VERIFIERS

_REASONING_GYM_SIZE = 10_000
_NUM_SAMPLES = 256
_MOST_ROWS = 10**8
_MAX_CAUSE_CHARS = 300


class Rows(Protocol):
    """A table that is read row by row; a `datasets.Dataset` is one."""

    @property
    def column_names(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


def load_rows(recipe: DataRecipe, seed: int) -> Rows:
    """The rows that `recipe.path` names; `seed` seeds reasoning_gym unless its options do.

    Values are those of the data: of text files as Python reads them, of tables and hub data sets as their Arrow types
    say. Nothing is written outside the Hugging Face cache. Raises UserError if there is no such data, an option is
    wrong, or there are no rows.
    """
    paths, shown = recipe.paths, recipe.title
    if recipe.split != "train" and recipe.is_here:
        raise UserError(f"data.split is '{recipe.split}', but {shown} has only 'train'; leave data.split out")
    rows: Rows
    if shown.startswith(REASONING_GYM):
        rows = _reasoning_gym(shown.removeprefix(REASONING_GYM), recipe.options, seed)
    elif shown.startswith(VERIFIERS):
        rows = _TasksetRows(load_tasks(shown.removeprefix(VERIFIERS), recipe.options))
    elif all(path.endswith(TEXT_FILES) for path in paths):
        rows = FileRows([Path(path) for path in paths], recipe.options)
    elif all(path.endswith(TABLE_FILES) for path in paths):
        rows = _table_files([Path(path) for path in paths], recipe.options)
    elif len(paths) == 1:
        rows = _load_dataset(shown, shown, {"split": recipe.split, **recipe.options})
    else:
        raise UserError(
            f"data.path: a list names files that are all {', '.join(TEXT_FILES)}, or all {', '.join(TABLE_FILES)}"
        )
    if len(rows) == 0:
        raise UserError(f"data.path: {shown} has no rows")
    return rows


def made_on_demand(rows: Rows) -> bool:
    """By a program, which may take its time for each."""
    return isinstance(rows, _ReasoningGymRows)


def columns_of(rows: Rows, columns: Sequence[str], whole: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and these columns of every row; of rows that are made on demand, of the first alone, unless the `whole`
    table is wanted."""
    if made_on_demand(rows) and not whole:
        yield 0, rows[0]
        return
    select = getattr(rows, "select_columns", None)
    selected = select([name for name in columns if name in rows.column_names]) if select else rows
    for index in range(len(rows)):
        yield index, selected[index]


def digest(rows: Rows, recipe: DataRecipe) -> str:
    """A hash that tells these rows from others: of the contents of files, of samples of a hub data set, of what
    makes reasoning_gym's."""
    if isinstance(rows, FileRows | _TasksetRows):
        return rows.digest()
    found = hashlib.sha256()
    if isinstance(rows, _ReasoningGymRows):
        found.update(json.dumps([recipe.title, recipe.options, version("reasoning-gym")], sort_keys=True).encode())
    elif recipe.is_here:
        for path in recipe.paths:
            with Path(path).open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    else:
        for index in range(0, len(rows), max(1, len(rows) // _NUM_SAMPLES)):
            text = json.dumps(rows[index], sort_keys=True, skipkeys=True, default=lambda value: type(value).__name__)
            found.update(text.encode())
    return found.hexdigest()


class _ReasoningGymRows:
    """Made on demand: its metadata may hold what Arrow cannot, so it stays as Python objects."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.column_names = list(dataset[0])

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self._dataset[index]


class _TasksetRows:
    """Of verifiers: those of its `load`, in order."""

    column_names: ClassVar[list[str]] = ["prompt", "task", "verifiers"]

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self._rows[index]

    def digest(self) -> str:
        """Of the tasks; not of where the package is."""
        found = hashlib.sha256()
        for row in self._rows:
            found.update(json.dumps([row["task"], row["verifiers"]["taskset"]], sort_keys=True).encode())
        return found.hexdigest()


class _TableRows:
    """Of a `datasets.Dataset`, as Arrow has them. What its schema calls an image or an audio file is not decoded: that
    would open the files and fetch the URLs that its cells name."""

    def __init__(self, dataset: Any, shown: str) -> None:
        self._dataset, self._shown = dataset, shown
        self._table = dataset.with_format("arrow")
        self.column_names: list[str] = dataset.column_names
        self.features = dataset.features

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Raises UserError for a row that Python has no values for."""
        try:
            return self._table[index].to_pylist()[0]
        except Exception as error:
            raise UserError(f"data.path: {self._shown} row {index} cannot be read: {_cause(error)}") from error

    def select_columns(self, names: list[str]) -> _TableRows:
        return _TableRows(self._dataset.select_columns(names), self._shown)


def _reasoning_gym(name: str, options: dict[str, Any], seed: int) -> Rows:
    known_sets = data_sets(name)
    from reasoning_gym.factory import create_dataset

    if name not in known_sets:
        raise UserError(f"data.path: reasoning_gym has no data set '{name}'{_nearest(name, known_sets)}")
    known = [f.name for f in dataclasses.fields(known_sets[name][1])]
    for option in options:
        if option not in known:
            raise UserError(f"data.options: reasoning_gym:{name} has no option '{option}'{_nearest(option, known)}")
    if isinstance(size := options.get("size"), int) and size > _MOST_ROWS:
        raise UserError(f"data.options.size {size} is more rows than can be put in order, {_MOST_ROWS}; lower it")
    try:
        return _ReasoningGymRows(create_dataset(name, **{"size": _REASONING_GYM_SIZE, "seed": seed, **options}))
    except Exception as error:
        raise UserError(f"data.options do not fit reasoning_gym:{name}: {_cause(error)}") from error


def _table_files(paths: list[Path], options: dict[str, Any]) -> Rows:
    for path in paths:
        if not path.is_file():
            raise UserError(f"data.path: there is no file {path}")
        (check_parquet if path.suffix == ".parquet" else check_arrow)(path)
    if len({path.suffix for path in paths}) > 1:
        raise UserError("data.path: parquet and arrow files cannot be mixed in one list; convert some")
    files = [str(path) for path in paths]
    return _load_dataset(", ".join(files), paths[0].suffix[1:], {"split": "train", "data_files": files, **options})


def _load_dataset(shown: str, builder: str, arguments: dict[str, Any]) -> Rows:
    import datasets

    try:
        rows = datasets.load_dataset(builder, **arguments)
    except Exception as error:
        raise UserError(f"data.path: {shown} could not be loaded: {_cause(error)}") from error
    if not isinstance(rows, datasets.Dataset):
        raise UserError(f"data.options: {shown} must load as one table of known length, not {type(rows).__name__}")
    return _TableRows(rows, shown)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _cause(error: BaseException) -> str:
    """`datasets` wraps what went wrong in errors that only say that something did."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text[:_MAX_CAUSE_CHARS]}"
