"""Data of a stranger: a file that is larger than it looks is one sentence, before memory or disk are full."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from asyncrl.data import bounds, tasks
from asyncrl.data.source import columns_of, load_rows
from asyncrl.errors import UserError
from asyncrl.recipe.data import DataRecipe

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
    with pytest.raises(
        UserError, match=rf"{name} line 2 has more than 64 MiB or a million lines or values, which is no"
    ):
        load_rows(DataRecipe(path=str(path)), 0)


def test_a_cell_of_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "ROW_BYTES", 1000)
    (tmp_path / "rows.csv").write_text('prompt\na\nb\n"' + "line\n" * 300)
    with pytest.raises(UserError, match=r"line 20\d has more than 0 MiB"):
        load_rows(DataRecipe(path=str(tmp_path / "rows.csv")), 0)
    monkeypatch.setattr(bounds, "ROW_LINES", 100)
    (tmp_path / "rows.csv").write_text('prompt\na\nb\n"' + "\n" * 300)
    with pytest.raises(UserError, match=r"line 10\d has more than 0 MiB or a million lines"):
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


def write_stream(path: Path, columns: dict[str, pyarrow.Array]) -> None:
    batch = pyarrow.record_batch(columns)
    with pyarrow.ipc.new_stream(path, batch.schema) as writer:
        writer.write_batch(batch)


def of_one_text(num_rows: int, text: bytes) -> pyarrow.Array:
    view = struct.pack("<i4sii", len(text), text[:4], 0, 0)
    buffers = [None, pyarrow.py_buffer(view * num_rows), pyarrow.py_buffer(text)]
    return pyarrow.Array.from_buffers(pyarrow.string_view(), num_rows, buffers)


BOMBS = {
    "an array of nulls": lambda: pyarrow.FixedSizeListArray.from_arrays(pyarrow.nulls(2**28 + 1), 2**28 + 1),
    "a list of nulls": lambda: pyarrow.ListArray.from_arrays(pyarrow.array([0, 2**30], "int32"), pyarrow.nulls(2**30)),
    "views of one text": lambda: of_one_text(100_000, b"x" * 2**20),
    "a dictionary in lists": lambda: pyarrow.ListArray.from_arrays(
        pyarrow.array([0, 50_000, 100_000], "int32"),
        pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, "int32"), pyarrow.array(["x" * 2**20])),
    ),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", BOMBS)
def test_an_arrow_file_whose_values_expand(tmp_path: Path, kind: str) -> None:
    write_stream(tmp_path / "rows.arrow", {"prompt": BOMBS[kind]()})
    with pytest.raises(UserError, match="unpacks to more than 2048 MiB"):
        load_rows(DataRecipe(path=str(tmp_path / "rows.arrow")), 0)


def test_a_row_of_an_arrow_file_is_bounded_too(tmp_path: Path) -> None:
    nulls = pyarrow.ListArray.from_arrays(pyarrow.array([0, 1, 2**24], "int32"), pyarrow.nulls(2**24))
    write_stream(tmp_path / "rows.arrow", {"prompt": nulls})
    with pytest.raises(UserError, match=r"rows\.arrow row 2 has more than 64 MiB"):
        load_rows(DataRecipe(path=str(tmp_path / "rows.arrow")), 0)


@pytest.mark.parametrize(("num_columns", "said"), [(1, "row 1 has more than 64 MiB"), (4, "unpacks to more than")])
def test_a_parquet_file_of_nulls(tmp_path: Path, num_columns: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each column has room, all of them do not."""
    monkeypatch.setattr(bounds, "UNPACKED_BYTES", 3 * 8 * 2**24)
    offsets = pyarrow.array([0, 2**24], "int32")
    nulls = pyarrow.ListArray.from_arrays(offsets, pyarrow.nulls(2**24))
    parquet.write_table(pyarrow.table({f"column{n}": nulls for n in range(num_columns)}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=said):
        load_rows(DataRecipe(path=str(tmp_path / "rows.parquet")), 0)


DAMAGES = {
    "list": (pyarrow.array([["a", "b"], ["c"]]), (0, 2, 3), (0, 2, 2**28)),
    "negative": (pyarrow.array([["a", "b"], ["c"]]), (0, 2, 3), (-100_000, 2, 3)),
    "text": (pyarrow.array(["aaaaa", "bb"]), (0, 5, 7), (0, 2**27, 7)),
    "nested": (pyarrow.array([[["a"], ["b"], ["c"]], [["d"] * 4]]), (0, 1, 2, 3, 7), (0, 1, 2, 3, 2**28)),
    "dictionary": (
        pyarrow.DictionaryArray.from_arrays(pyarrow.array([1, 0], "int32"), pyarrow.array(["a", "b"])),
        (1, 0),
        (1, 2**28),
    ),
    "view": (of_one_text(2, b"x" * 1000), (1000, 0x78787878), (2000, 0x78787878)),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_an_arrow_file_that_points_outside_itself(tmp_path: Path, kind: str) -> None:
    """In a process of its own, which Arrow would end."""
    path, (column, numbers, wrong) = tmp_path / "rows.arrow", DAMAGES[kind]
    write_stream(path, {"prompt": column})
    sound, damaged = (struct.pack(f"<{len(one)}i", *one) for one in (numbers, wrong))
    assert sound in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(sound, damaged))
    code = (
        "import sys; from pathlib import Path; from asyncrl.data import bounds; bounds.check_arrow(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(f"asyncrl.errors.UserError: data.path: {path} ")
    assert "is damaged: " in done.stderr or "has more than 64 MiB" in done.stderr


def test_types_that_expand_in_a_cast(tmp_path: Path) -> None:
    texts = pyarrow.RunEndEncodedArray.from_arrays(pyarrow.array([3], "int32"), pyarrow.array(["a"]))
    write_stream(tmp_path / "rows.arrow", {"prompt": texts})
    with pytest.raises(UserError, match=r"has values of type run_end_encoded.*, which are not read; cast them"):
        load_rows(DataRecipe(path=str(tmp_path / "rows.arrow")), 0)


def test_values_of_every_other_type_are_read(tmp_path: Path) -> None:
    """Sliced, null and empty ones among them."""
    rows = [
        {"prompt": "a", "chat": [{"role": "user", "content": "b", "n": None}], "pair": [[1], [2, 3]], "none": None},
        {"prompt": None, "chat": [], "pair": None, "none": None},
        {"prompt": "c" * 100, "chat": None, "pair": [[], None], "none": None},
    ] * 3
    kind = pyarrow.list_(pyarrow.list_(pyarrow.int8()), 2)
    table = pyarrow.Table.from_pylist(rows)
    table = table.set_column(2, "pair", pyarrow.array([row["pair"] for row in rows], kind))
    table = table.append_column("view", table["prompt"].cast(pyarrow.string_view())).slice(1)
    table = table.append_column("word", table["prompt"].dictionary_encode())
    with pyarrow.ipc.new_stream(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    found = load_rows(DataRecipe(path=str(tmp_path / "rows.arrow")), 0)
    assert [found[n]["pair"] for n in range(8)] == [row["pair"] for row in rows[1:]]
    assert [found[n]["word"] for n in range(8)] == [row["prompt"] for row in rows[1:]]


def test_columns_that_every_row_adds_to(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({f"{row}_{n}": 1 for n in range(200)}) + "\n" for row in range(6)))
    with pytest.raises(UserError, match=r"with .*rows\.jsonl there are more than 1000 columns; put what differs"):
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


@pytest.mark.parametrize("kind", ["Image", "Audio", "Video", "Pdf", "Nifti"])
@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_what_a_schema_calls_an_image_is_not_opened(tmp_path: Path, kind: str, name: str) -> None:
    """Nor fetched: a cell may name any file, pipe or URL."""
    os.mkfifo(pipe := tmp_path / "pipe")
    cells = pyarrow.array([{"bytes": b"%!PS", "path": str(pipe)}] * 2, STORED)
    table = pyarrow.table({"prompt": ["a", "b"], "picture": cells})
    types = {"prompt": {"dtype": "string", "_type": "Value"}, "picture": {"_type": kind}}
    said = {"huggingface": json.dumps({"info": {"features": types}})}
    write_table(table.replace_schema_metadata(said), tmp_path / name)
    rows = load_rows(DataRecipe(path=str(tmp_path / name)), 0)
    assert rows[1]["picture"] == {"bytes": b"%!PS", "path": str(pipe)}
    assert [row for _, row in columns_of(rows, ["prompt"])] == [{"prompt": "a"}, {"prompt": "b"}]


STORED = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def write_table(table: Any, path: Path) -> None:
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
        return
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    "values",
    [
        pyarrow.array([2**62], pyarrow.timestamp("s")),
        pyarrow.array([2**31 - 1], pyarrow.int32()).cast(pyarrow.date32()),
        pyarrow.array([1], pyarrow.timestamp("s", tz="Nope/Zone")),
    ],
    ids=["moment", "day", "zone"],
)
def test_a_value_that_python_does_not_have_is_a_sentence(tmp_path: Path, values: Any) -> None:
    write_table(pyarrow.table({"prompt": ["a"], "when": values}), tmp_path / "rows.arrow")
    rows = load_rows(DataRecipe(path=str(tmp_path / "rows.arrow")), 0)
    with pytest.raises(UserError, match=r"rows.arrow row 0 cannot be read: "):
        rows[0]


def test_a_dictionary_of_values_without_bytes_takes_no_memory(tmp_path: Path) -> None:
    none = pyarrow.Array.from_buffers(pyarrow.binary(0), 2**30, [None, pyarrow.py_buffer(b"")])
    keys = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1], pyarrow.int64()), none, safe=False)
    write_table(pyarrow.table({"prompt": ["a", "b"], "x": keys}), tmp_path / "rows.arrow")
    tracemalloc.start()
    with contextlib.suppress(UserError):
        load_rows(DataRecipe(path=str(tmp_path / "rows.arrow")), 0)[0]
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()


def test_a_row_of_a_million_objects_is_refused(tmp_path: Path) -> None:
    """98 KB of them, packed, were 4 GB of Python's objects."""
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a", "x": [' + b"{}," * 2**20 + b"{}]}"))
    with pytest.raises(UserError, match="a million lines or values"):
        load_rows(DataRecipe(path=str(path)), 0)
