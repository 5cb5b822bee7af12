"""How much a file of data may hold: a small one can unpack to more than memory and disk have room for."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil

from asyncrl.errors import UserError

ROW_BYTES = 64 * 2**20
"""Of a row; a prompt of a million tokens has a few MiB."""
UNPACKED_BYTES = 2 * 2**30
FEW_ROWS = 2**20
"""So many a file of any size may have; more only if it has a byte for each, with which to tell them apart."""
_RATIO = 100
"""What may unpack to more than that may do so to so many times its own size; texts pack to a thirtieth at best."""
_BATCH_BYTES, _BATCH_ROWS = 2**28, 4096
_LARGEST_OBJECTS = 30
"""Bytes of memory that a byte of JSON may take as Python's objects."""


def most_unpacked(path: Path) -> int:
    return max(UNPACKED_BYTES, _RATIO * path.stat().st_size)


class Unpacked(io.RawIOBase):
    """What a compressed file unpacks to. Raises UserError where that is too much."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file, self._left = path, file, most_unpacked(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._left -= len(data)
        if self._left < 0:
            _too_much(self._path)
        return len(data)


def lines(path: Path, file: Any) -> Iterator[tuple[int, Any]]:
    """Number and text of each. Raises UserError for one that is longer than a row may be."""
    number = 0
    while text := file.readline(ROW_BYTES + 1):
        number += 1
        if len(text) > ROW_BYTES:
            raise too_long(path, number)
        check_rows(path, number)
        yield number, text


def too_long(path: Path, line: int) -> UserError:
    return UserError(
        f"data.path: {path} line {line} has more than {ROW_BYTES // 2**20} MiB, which is no task for a model; see what "
        "it is, and shorten it"
    )


def check_rows(path: Path, number: int) -> None:
    """Raises UserError for more rows than a file of its size can tell apart: each takes time."""
    if number > FEW_ROWS and number > (size := path.stat().st_size):
        raise UserError(
            f"data.path: {path} has {number} rows or more in {size} bytes, so that most are the same; see what it is"
        )


def read_whole(path: Path, file: Any) -> bytes:
    """Raises UserError if there is no room for what it holds, as Python's objects."""
    most = psutil.virtual_memory().available // _LARGEST_OBJECTS
    text: bytes = file.read(most + 1)
    if len(text) > most:
        raise UserError(
            f"data.path: {path} has more than {most // 2**20} MiB, and is read as a whole; write it as .jsonl, which "
            "is read line by line"
        )
    return text


def check_parquet(path: Path) -> None:
    """Raises UserError for a file that unpacks to too much: values that repeat are stored once. One that is damaged is
    left to who reads it."""
    from pyarrow import parquet

    most, num_bytes = most_unpacked(path), 0
    try:
        with parquet.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            check_rows(path, sum(file.metadata.row_group(number).num_rows for number in groups))
            for number in groups:
                group = file.metadata.row_group(number)
                columns = [group.column(place) for place in range(group.num_columns)]
                widest = max((column.total_uncompressed_size for column in columns), default=0)
                num_values = max((column.num_values for column in columns), default=0)
                if 8 * num_values > most:
                    _too_much(path)
                if len(columns) * num_values * widest <= most:
                    # No value has more bytes than its column.
                    num_bytes += group.total_byte_size
                    continue
                rows = min(max(1, _BATCH_BYTES // max(1, widest)), _BATCH_ROWS)
                for batch in file.iter_batches(rows, row_groups=[number]):
                    num_bytes += sum(map(_num_bytes, batch.columns))
                    if num_bytes > most:
                        _too_much(path)
    except (OSError, ValueError):
        return


def check_arrow(path: Path) -> None:
    """The same of an Arrow file or stream, whose batches are mapped, not read, unless they are compressed."""
    import pyarrow

    most, num_bytes, num_rows = most_unpacked(path), 0, 0
    with contextlib.suppress(OSError, ValueError), pyarrow.memory_map(str(path)) as source:
        try:
            batches = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            file = pyarrow.ipc.open_file(source)
            batches = map(file.get_batch, range(file.num_record_batches))
        for batch in batches:
            num_rows, num_bytes = num_rows + batch.num_rows, num_bytes + sum(map(_num_bytes, batch.columns))
            check_rows(path, num_rows)
            if num_bytes > most:
                _too_much(path)


def _num_bytes(column: Any) -> int:
    """As `datasets` has it, which keeps no dictionary."""
    return (column.dictionary_decode() if hasattr(column, "dictionary_decode") else column).nbytes


def _too_much(path: Path) -> NoReturn:
    raise UserError(
        f"data.path: {path} unpacks to more than {most_unpacked(path) // 2**20} MiB, over {_RATIO} times its size; see "
        "what it is, or write it anew without compression"
    )
