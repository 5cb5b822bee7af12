"""Local text files as rows of what the file says: no type is guessed, so a date, `007` or `null` stays what it is.

file --read once--> JSON lines in an anonymous temporary file, and where each begins --row n--> Python values

So memory holds no row, a file that changes during a run changes nothing in it, and compressed files are as others.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import tempfile
import zlib
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asyncrl.data import bounds
from asyncrl.errors import UserError, nearest

_IN_MEMORY_BYTES = 64 * 2**20
_COMPRESSED = ".gz"
_WHITE = b" \t\r\n"
"""What JSON allows around a value; Python's own `strip` takes more."""
_OPTIONS = {
    ".jsonl": (),
    ".json": ("field",),
    ".csv": ("sep", "delimiter", "quotechar", "escapechar", "encoding"),
}

Found = tuple[int, bytes]
"""Line of the file (of a JSON list: minus the place in it), and the row there as a JSON object."""


class FileRows:
    """Rows of one or more text files, one after the other. Every row has every column, None where its file has none."""

    def __init__(self, paths: Sequence[Path], options: dict[str, Any]) -> None:
        """Raises UserError for a file that is not there or no table, naming the line."""
        self._text = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115
        self._ends = array("q")
        self._lines = array("q")
        self._paths, self._first_rows = list(paths), []
        self._hash = hashlib.sha256()
        columns: dict[str, None] = {}
        for path in paths:
            self._first_rows.append(len(self))
            for line, text in _read(path, options):
                columns.update(dict.fromkeys(_object(text, path, line)))
                bounds.check_columns(path, len(columns))
                self._add(line, text)
        self.column_names = list(columns)

    def _add(self, line: int, text: bytes) -> None:
        try:
            self._text.write(text)
        except OSError as error:
            where = tempfile.gettempdir()
            raise UserError(
                f"data.path: no copy fits in {where}: {error.strerror}; set TMPDIR to a larger disk"
            ) from error
        self._hash.update(text.strip(_WHITE) + b"\n")
        self._ends.append((self._ends[-1] if self._ends else 0) + len(text))
        self._lines.append(line)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        start, end = self._ends[index - 1] if index else 0, self._ends[index]
        self._text.seek(start)
        row = json.loads(self._text.read(end - start).decode())
        return {name: row.get(name) for name in self.column_names}

    def digest(self) -> str:
        """Of all rows, however the files are named, divided or compressed."""
        return self._hash.hexdigest()

    def where(self, index: int) -> str:
        """File and line of a row, for people."""
        path = self._paths[bisect_right(self._first_rows, index) - 1]
        return f"{path} {_place(self._lines[index])}"


def _place(line: int) -> str:
    return f"line {line}" if line > 0 else f"row {-line}"


def _kind(path: Path) -> str:
    """`.jsonl`, `.json` or `.csv` for such a file, compressed or not; else its own suffix."""
    return Path(path.name.removesuffix(_COMPRESSED)).suffix


def _read(path: Path, options: dict[str, Any]) -> Iterator[Found]:
    if not path.is_file():
        raise UserError(f"data.path: there is no file {path}")
    if not path.stat().st_size:
        raise UserError(f"data.path: {path} is empty; write a task a line")
    kind = _kind(path)
    for option in options:
        if option not in _OPTIONS[kind]:
            known = ", ".join(_OPTIONS[kind]) or "none"
            raise UserError(
                f"data.options: a {kind} file has no option '{option}', only {known}{nearest(option, _OPTIONS[kind])}"
            )
    reader = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}[kind]
    try:
        with gzip.open(path) if path.suffix == _COMPRESSED else path.open("rb") as file:
            unpacked = io.BufferedReader(bounds.Unpacked(path, file)) if path.suffix == _COMPRESSED else file
            yield from reader(path, unpacked, **options)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data.path: {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _json_lines(path: Path, file: Any) -> Iterator[Found]:
    for line, text in bounds.lines(path, file):
        text = text.removeprefix(b"\xef\xbb\xbf") if line == 1 else text
        if text.strip(_WHITE):
            yield line, text


def _json(path: Path, file: Any, field: str | None = None) -> Iterator[Found]:
    """A list of objects, one under the key `field`, or JSON Lines, as many files of this name are."""
    text = bounds.read_whole(path, file)
    try:
        whole = json.loads(text, object_pairs_hook=_once)
    except _Twice as twice:
        raise _doubled(path, _row_with_twice(text, field), twice) from twice
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise _invalid(path, error.lineno, error) from error
        yield from _json_lines(path, io.BytesIO(text))
        return
    except (ValueError, RecursionError) as error:
        raise _invalid(path, 1, error) from error
    if field is not None:
        if not isinstance(whole, dict) or field not in whole:
            raise UserError(f"data.options.field: {path} has no key '{field}' at its top; name the one of the rows")
        whole = whole[field]
    rows = whole if isinstance(whole, list) else [whole]
    bounds.check_rows(path, len(rows))
    for number, row in enumerate(rows, 1):
        yield -number, json.dumps(row).encode()


def _csv(path: Path, file: Any, encoding: str = "utf-8-sig", **dialect: str) -> Iterator[Found]:
    """Cells are text, an empty one is ''."""
    csv.field_size_limit(bounds.ROW_BYTES)
    num_chars = num_lines = 0

    def lines() -> Iterator[str]:
        nonlocal num_chars, num_lines
        for line, text in bounds.lines(path, io.TextIOWrapper(file, encoding, newline="")):
            # A quoted cell may have many lines.
            num_chars, num_lines = num_chars + len(text), num_lines + 1
            if num_chars > bounds.ROW_BYTES or num_lines > bounds.ROW_LINES:
                raise bounds.too_long(path, line)
            yield text

    dialect = {"delimiter" if name == "sep" else name: value for name, value in dialect.items()}
    try:
        reader = csv.reader(lines(), strict=True, **dialect)
        header = next(reader, [])
        bounds.check_columns(path, len(header))
        if twice := sorted(name for name, number in Counter(header).items() if number > 1):
            raise UserError(f"data.path: {path} has two columns '{twice[0]}'; rename one")
        before = reader.line_num
        for cells in reader:
            first, before = before + 1, reader.line_num
            num_chars = num_lines = 0
            if cells and len(cells) != len(header):
                raise UserError(
                    f"data.path: {path} line {reader.line_num} has {len(cells)} cells, its header {len(header)}; put "
                    "cells with a separator or a quote in quotes"
                )
            if cells:
                yield first, json.dumps(dict(zip(header, cells, strict=True))).encode()
    except csv.Error as error:
        raise UserError(f"data.path: {path} line {reader.line_num} is not valid CSV: {error}") from error
    except (LookupError, TypeError) as error:
        raise UserError(f"data.options do not fit {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.path: {path} is not {encoding.removesuffix('-sig').upper()} text; name its encoding in "
            "data.options.encoding, such as latin-1"
        ) from error


def _object(text: bytes, path: Path, line: int) -> dict[str, Any]:
    if text.count(b",") + text.count(b"[") + text.count(b"{") > bounds.ROW_VALUES:
        raise bounds.too_long(path, abs(line))
    try:
        row = json.loads(text.rstrip(_WHITE).decode(), object_pairs_hook=_once)
    except _Twice as twice:
        raise _doubled(path, line, twice) from twice
    except (ValueError, RecursionError) as error:
        raise _invalid(path, line, error) from error
    if not isinstance(row, dict):
        raise UserError(f'data.path: {path} {_place(line)} is no object of columns, such as {{"prompt": "..."}}')
    return row


class _Twice(Exception):
    """An object has this key twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return found


def _row_with_twice(text: bytes, field: str | None) -> int:
    """The place of the first such object's row, as in `Found`; 0: it is no row's."""
    whole = json.loads(text, object_pairs_hook=lambda pairs: d if len(d := dict(pairs)) == len(pairs) else _Twice)
    rows = whole.get(field) if isinstance(whole, dict) else whole
    for number, row in enumerate(rows if isinstance(rows, list) else [], 1):
        inside = [row]
        while inside:
            value = inside.pop()
            if value is _Twice:
                return -number
            inside += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 0


def _doubled(path: Path, line: int, twice: _Twice) -> UserError:
    where = f"{path} {_place(line)}" if line else path
    return UserError(f"data.path: {where} has the key '{str(twice)[:60]}' twice in one object; remove or rename one")


def _invalid(path: Path, line: int, error: Exception) -> UserError:
    match error:
        case json.JSONDecodeError():
            cause = f"{error.msg}, column {error.colno}"
        case UnicodeDecodeError():
            cause = "it is not UTF-8 text"
        case RecursionError():
            cause = "it is nested too deep"
        case _:
            cause = str(error).partition(";")[0]
    return UserError(f"data.path: {path} line {line} is not valid JSON: {cause}")
