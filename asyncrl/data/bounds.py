"""How much a file of data may hold: a small one can unpack to more than memory and disk have room for."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from asyncrl import memory
from asyncrl.errors import UserError

ROW_BYTES = 64 * 2**20
"""Of a row; a prompt of a million tokens has a few MiB."""
ROW_LINES = ROW_VALUES = 2**20
UNPACKED_BYTES = 2 * 2**30
FEW_ROWS = 2**20
"""So many a file of any size may have; more only if it has a byte for each, with which to tell them apart."""
MOST_COLUMNS = 1000
_VALUE_BYTES = 8.0
"""What a value takes at least, as a row's Python object."""
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


def too_long(path: Path, number: int, what: str = "line") -> UserError:
    return UserError(
        f"data.path: {path} {what} {number} has more than {ROW_BYTES // 2**20} MiB or a million lines or values, which "
        "is no task for a model; see what it is, and shorten it"
    )


def check_rows(path: Path, number: int) -> None:
    """Raises UserError for more rows than a file of its size can tell apart: each takes time."""
    if number > FEW_ROWS and number > (size := path.stat().st_size):
        raise UserError(
            f"data.path: {path} has {number} rows or more in {size} bytes, so that most are the same; see what it is"
        )


def read_whole(path: Path, file: Any) -> bytes:
    """Raises UserError if there is no room for what it holds, as Python's objects."""
    most = memory.available() // _LARGEST_OBJECTS
    text: bytes = file.read(most + 1)
    if len(text) > most:
        raise UserError(
            f"data.path: {path} has more than {most // 2**20} MiB, and is read as a whole; write it as .jsonl, which "
            "is read line by line"
        )
    return text


def check_columns(path: Path, number: int) -> None:
    """Raises UserError for more columns than a table has: every row has all of them."""
    if number > MOST_COLUMNS:
        raise UserError(
            f"data.path: with {path} there are more than {MOST_COLUMNS} columns; put what differs from row to row "
            "under one key"
        )


def check_parquet(path: Path) -> None:
    """Raises UserError for a file that unpacks to too much: values that repeat are stored once. One that is damaged is
    left to who reads it."""
    from pyarrow import parquet

    table = _Table(path)
    with contextlib.suppress(OSError, ValueError), parquet.ParquetFile(path) as file:
        check_columns(path, len(file.schema_arrow))
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        check_rows(path, sum(group.num_rows for group in groups))
        columns = [[group.column(place) for place in range(group.num_columns)] for group in groups]
        table.require_room(_VALUE_BYTES * sum(column.num_values for group in columns for column in group))
        for number, group in enumerate(columns):
            num_rows = max(1, groups[number].num_rows)
            if _VALUE_BYTES * sum(column.num_values for column in group) > ROW_BYTES * num_rows:
                raise too_long(path, table.num_rows + 1, "row")
            widest = max((column.total_uncompressed_size for column in group), default=0)
            rows = min(max(1, _BATCH_BYTES // max(1, widest)), _BATCH_ROWS)
            for batch in file.iter_batches(rows, row_groups=[number]):
                table.add(batch)


def check_arrow(path: Path) -> None:
    """The same of an Arrow file or stream, whose batches are mapped, not read, unless they are compressed. UserError
    also for a batch that points outside itself, with which Arrow would end the process."""
    import pyarrow

    table = _Table(path)
    with contextlib.suppress(OSError, ValueError), pyarrow.memory_map(str(path)) as source:
        try:
            batches = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            file = pyarrow.ipc.open_file(source)
            batches = map(file.get_batch, range(file.num_record_batches))
        for batch in batches:
            table.add(batch)


class _Table:
    """What the batches of a file, checked one by one, come to."""

    def __init__(self, path: Path) -> None:
        self._path, self._num_bytes, self.num_rows = path, 0.0, 0

    def require_room(self, num_bytes: float) -> None:
        if num_bytes > most_unpacked(self._path):
            _too_much(self._path)

    def add(self, batch: Any) -> None:
        check_columns(self._path, batch.num_columns)
        check_rows(self._path, self.num_rows + batch.num_rows)
        try:
            batch.validate()
            sizes = np.broadcast_to(sum(map(_sizes, batch.columns)), batch.num_rows)
            self._num_bytes += float(sizes.sum())
            self.require_room(self._num_bytes)
            if (too_large := np.flatnonzero(sizes > ROW_BYTES)).size:
                raise too_long(self._path, self.num_rows + int(too_large[0]) + 1, "row")
            # Last, as it reads what views share once for each.
            batch.validate(full=True)
        except TypeError as error:
            raise UserError(
                f"data.path: {self._path} has values of type {error}, which are not read; cast them"
            ) from error
        except (ValueError, IndexError) as error:
            cause = str(error).partition(": ")[2] or error
            raise UserError(f"data.path: {self._path} is damaged: {cause}; get or write it anew") from error
        self.num_rows += batch.num_rows


def _sizes(array: Any) -> Any:
    """Bytes that each value unpacks to, or the one number for all: float64 [length] or float. Every value has some,
    nulls and empty lists too, whatever a file stores of them. TypeError for types that `datasets` has none for."""
    import pyarrow
    from pyarrow import compute, types

    kind, length = array.type, len(array)
    if isinstance(array, pyarrow.ExtensionArray):
        return _sizes(array.storage)
    if not length or types.is_null(kind):
        return _VALUE_BYTES
    if types.is_dictionary(kind):
        sizes = _sizes(array.dictionary)
        if isinstance(sizes, float):
            return max(sizes, _VALUE_BYTES)
        sizes = np.append(sizes, _VALUE_BYTES)
        return sizes[array.indices.fill_null(0).to_numpy(zero_copy_only=False)]
    if types.is_struct(kind):
        return sum((_sizes(array.field(place)) for place in range(kind.num_fields)), start=_VALUE_BYTES)
    if types.is_fixed_size_list(kind):
        sizes = _sizes(array.values)
        if isinstance(sizes, float):
            return _VALUE_BYTES + kind.list_size * sizes
        first = array.offset * kind.list_size
        whole = sizes[first : first + length * kind.list_size]
        return _VALUE_BYTES + whole.reshape(length, kind.list_size).sum(axis=1)
    if types.is_list(kind) or types.is_large_list(kind):
        sizes, offsets = _sizes(array.values), array.offsets.to_numpy()
        if isinstance(sizes, float):
            return _VALUE_BYTES + np.diff(offsets) * sizes
        return _VALUE_BYTES + np.diff(np.append(0.0, sizes.cumsum())[offsets])
    if types.is_string_view(kind) or types.is_binary_view(kind):
        # A view has 16 bytes, of which the first four are the length.
        views = np.frombuffer(array.buffers()[1], np.int32)
        return _VALUE_BYTES + views[4 * array.offset : 4 * (array.offset + length) : 4].astype(float)
    if any(
        is_kind(kind) for is_kind in (types.is_string, types.is_binary, types.is_large_string, types.is_large_binary)
    ):
        return _VALUE_BYTES + compute.binary_length(array).fill_null(0).to_numpy().astype(float)
    if not types.is_primitive(kind) and not types.is_fixed_size_binary(kind) and not types.is_decimal(kind):
        raise TypeError(kind)
    return max(_VALUE_BYTES, kind.bit_width / 8)


def _too_much(path: Path) -> NoReturn:
    raise UserError(
        f"data.path: {path} unpacks to more than {most_unpacked(path) // 2**20} MiB, over {_RATIO} times its size; see "
        "what it is, or write it anew without compression"
    )
