"""Data of a stranger: a file that is larger than it looks is one sentence, before memory or disk are full."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from asyncrl.data import bounds, tasks
from asyncrl.data.source import load_rows
from asyncrl.errors import UserError
from asyncrl.recipe.schema import DataRecipe

LINE = b'{"prompt": "a", "answer": "b"}\n'


@pytest.fixture
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 * 2**20


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(("name", "head"), [("rows.jsonl", b'{"prompt": "'), ("rows.csv", b'prompt\n"')])
def test_a_row_of_a_gigabyte(tmp_path: Path, name: str, head: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(LINE + head if name.endswith("jsonl") else head)
    with path.open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(UserError, match=rf"{name} line 2 has more than 64 MiB, which is no task"):
        load_rows(DataRecipe(path=str(path)), 0)


def test_a_cell_of_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "ROW_BYTES", 1000)
    (tmp_path / "rows.csv").write_text('prompt\na\nb\n"' + "line\n" * 300)
    with pytest.raises(UserError, match=r"line 20\d has more than 0 MiB"):
        load_rows(DataRecipe(path=str(tmp_path / "rows.csv")), 0)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.json.gz"])
def test_a_file_that_unpacks_to_more(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "UNPACKED_BYTES", 2**20)
    cell = b"a" * 5000
    line = cell + b"\n" if "csv" in name else b'{"prompt": "' + cell + b'"}\n'
    path, content = tmp_path / name, (b"prompt\n" if "csv" in name else b"") + line * 5000
    path.write_bytes(gzip.compress(content))
    assert path.stat().st_size * 200 < len(content)
    with pytest.raises(UserError, match=r"unpacks to more than \d+ MiB, over 100 times its size"):
        load_rows(DataRecipe(path=str(path)), 0)
    path.write_bytes(gzip.compress((b"prompt\n" if "csv" in name else b"") + line * 100))
    assert len(load_rows(DataRecipe(path=str(path)), 0)) == 100


def test_json_that_memory_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(LINE)
    with path.open("r+b") as file:
        file.truncate(2**34)
    monkeypatch.setattr(bounds, "_LARGEST_OBJECTS", 30_000)
    with pytest.raises(UserError, match=r"and is read as a whole; write it as \.jsonl"):
        load_rows(DataRecipe(path=str(path)), 0)


@pytest.mark.parametrize("shape", ["text", "numbers"])
def test_a_parquet_file_that_unpacks_to_more(tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its one value is stored once, and meant a hundred thousand times: 10 GB of a few KB."""
    path, num_rows = tmp_path / "rows.parquet", 100_000
    if shape == "text":
        indices = pyarrow.array([0] * num_rows, pyarrow.int32())
        column = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(["x" * 100_000]))
    else:
        inner = pyarrow.array([0] * 2**20, pyarrow.int8())
        column = pyarrow.ListArray.from_arrays(pyarrow.array([0, 2**20], pyarrow.int32()), inner)
    writer = parquet.ParquetWriter(path, pyarrow.schema([("prompt", column.type)]))
    for _ in range(1 if shape == "text" else 30):
        writer.write_table(pyarrow.table({"prompt": column}))
    writer.close()
    assert path.stat().st_size < 2**23
    monkeypatch.setattr(bounds, "UNPACKED_BYTES", 2**22)
    with pytest.raises(UserError, match=r"unpacks to more than \d+ MiB"):
        load_rows(DataRecipe(path=str(path)), 0)


def write_rows(path: Path, num_rows: int) -> None:
    """Of nothing, in a few KB."""
    columns = {"prompt": pyarrow.nulls(num_rows), "answer": pyarrow.nulls(num_rows)}
    match path.name.split("."):
        case [_, "parquet"]:
            parquet.write_table(pyarrow.table(columns), path)
        case [kind, "arrow"]:
            batch = pyarrow.record_batch(columns)
            with (pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream)(path, batch.schema) as writer:
                writer.write_batch(batch)
        case [_, "json", "gz"]:
            path.write_bytes(gzip.compress(b"[" + b"{}," * (num_rows - 1) + b"{}]"))
        case _:
            path.write_bytes(gzip.compress(b"{}\n" * num_rows))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "name", ["rows.parquet", "file.arrow", "stream.arrow", "rows.jsonl.gz", "rows.json.gz", "rows.csv.gz"]
)
def test_more_rows_than_a_file_can_tell_apart(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    if not name.endswith("gz"):
        write_rows(path, 30_000_000)
    else:
        monkeypatch.setattr(bounds, "FEW_ROWS", 2**14)
        write_rows(path, 20_000)
    assert path.stat().st_size < 2**17
    with pytest.raises(UserError, match=rf"{name} has \d+ rows or more in \d+ bytes, so that most are the same"):
        load_rows(DataRecipe(path=str(path)), 0)
    write_rows(path, 5)
    assert len(load_rows(DataRecipe(path=str(path)), 0)) > 0


def test_bad_rows_are_not_counted_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_MOST_COUNTED", 5)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n' + '{"prompt": null}\n' * 100)
    recipe = DataRecipe(path=str(tmp_path / "rows.jsonl"))
    with pytest.raises(UserError, match="5 of the first 6 rows have no usable prompt"):
        tasks.TaskSource(load_rows(recipe, 0), recipe, 0).check_prompts()
