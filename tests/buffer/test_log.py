"""The journal returns the records that were written, whole and in order, or says where it is damaged."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.buffer import log
from asyncrl.buffer.log import JournalCorrupt, JournalWriteError, JournalWriter, Position, read, read_at, segment_path
from asyncrl.errors import RunFailed, UserError

Pair = tuple[int, bytes]
"""Kind and payload."""

HEADER_BYTES = 17
PAIRS = st.tuples(st.integers(0, 255), st.binary(max_size=40))
SMALL: list[Pair] = [
    (1, b"first"), (2, b""), (1, b"AJ01 in a payload"), (3, b"\x00" * 9), (255, b"\x00"),
    (0, b"before the last"), (1, b"the last"),
]  # fmt: skip


def pairs(folder: Path, stream: str = "s") -> list[Pair]:
    return [(record.kind, record.payload) for record in read(folder, stream)]


def write(folder: Path, records: list[Pair], segment_bytes: int = 2**20, stream: str = "s") -> list[Position]:
    writer = JournalWriter(folder, stream, segment_bytes)
    positions = [writer.append(*record) for record in records]
    writer.close()
    return positions


@pytest.fixture
def small(tmp_path: Path) -> list[Position]:
    """SMALL, in three segments of `tmp_path`."""
    positions = write(tmp_path, SMALL, segment_bytes=60)
    assert [position.segment for position in positions] == [0, 0, 0, 1, 1, 1, 2]
    return positions


@contextlib.contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """In place: a file written anew would be flushed to the disk every time."""
    with path.open("r+b", buffering=0) as file:
        (byte,) = os.pread(file.fileno(), 1, bit // 8)
        os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), bit // 8)
        yield
        os.pwrite(file.fileno(), bytes([byte]), bit // 8)


# -- what is written is read


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["groups", "control"]), st.lists(PAIRS, max_size=5)), max_size=5))
def test_each_stream_is_read_back_in_order_over_writers_and_segments(parts: list[tuple[str, list[Pair]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stream, records in parts:
            write(folder, records, segment_bytes=50, stream=stream)
        for stream in ("groups", "control"):
            assert pairs(folder, stream) == [pair for of, records in parts if of == stream for pair in records]


def test_two_open_streams_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    writers = {stream: JournalWriter(tmp_path, stream, segment_bytes=100) for stream in ("groups", "control")}
    for number in range(40):
        for stream, writer in writers.items():
            writer.append(number, f"{stream} {number}".encode())
    for stream, writer in writers.items():
        writer.close()
        assert pairs(tmp_path, stream) == [(n, f"{stream} {n}".encode()) for n in range(40)]
        assert len(log.segments(tmp_path, stream)) >= 8


def test_a_segment_is_closed_when_it_has_reached_its_size(tmp_path: Path) -> None:
    size = HEADER_BYTES + 10
    positions = write(tmp_path, [(1, bytes(10))] * 5, segment_bytes=2 * size)
    assert positions == [Position(n // 2, n % 2 * size + HEADER_BYTES, 10) for n in range(5)]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["s_000000.log", "s_000001.log", "s_000002.log"]
    assert segment_path(tmp_path, "s", 2).stat().st_size == size


def test_the_oldest_segments_can_be_deleted(tmp_path: Path, small: list[Position]) -> None:
    segment_path(tmp_path, "s", 0).unlink()
    assert pairs(tmp_path) == SMALL[3:]
    write(tmp_path, [(9, b"after")])
    assert log.segments(tmp_path, "s") == [1, 2, 3], "the number of a deleted segment is not used again"


def test_a_record_can_be_read_as_soon_as_append_returns(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "s", segment_bytes=60)
    for number, record in enumerate(SMALL, 1):
        position = writer.append(*record)
        assert pairs(tmp_path) == SMALL[:number]
        assert read_at(tmp_path, "s", position) == record[1]
    writer.close()


def test_read_and_append_agree_on_the_positions(tmp_path: Path, small: list[Position]) -> None:
    assert [record.position for record in read(tmp_path, "s")] == small
    assert [read_at(tmp_path, "s", position) for position in small] == [payload for _, payload in SMALL]


def test_a_new_writer_leaves_earlier_segments_alone(tmp_path: Path, small: list[Position]) -> None:
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write(tmp_path, SMALL[:1])
    assert len(list(tmp_path.iterdir())) == len(before) + 1
    assert all(path.read_bytes() == data for path, data in before.items())


def test_an_empty_or_missing_folder_has_no_records(tmp_path: Path) -> None:
    assert pairs(tmp_path) == []
    assert pairs(tmp_path / "missing") == []


# -- torn tails


@pytest.mark.parametrize("segment", [0, 1, 2])
def test_a_cut_at_any_byte_leaves_exactly_the_whole_records(
    tmp_path: Path, small: list[Position], segment: int
) -> None:
    path = segment_path(tmp_path, "s", segment)
    data = path.read_bytes()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = [
            pair
            for pair, position in zip(SMALL, small, strict=True)
            if position.segment != segment or position.offset + position.num_bytes <= cut
        ]
        assert pairs(tmp_path) == whole, cut
    assert len(whole) == len(SMALL)


@pytest.mark.parametrize("num_zeros", [1, HEADER_BYTES - 1, HEADER_BYTES, 600, 5000])
def test_zeros_at_the_tail_are_a_torn_tail(tmp_path: Path, small: list[Position], num_zeros: int) -> None:
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes() + bytes(num_zeros))
    assert pairs(tmp_path) == SMALL


@pytest.mark.parametrize("num_before", [1, 490, 500, 2000])
def test_sectors_of_the_last_record_that_were_never_written_are_a_torn_tail(tmp_path: Path, num_before: int) -> None:
    """A crash of the machine: the file has its length, but not all of its bytes."""
    records = [(1, b"x" * num_before), (1, b"y" * 3000)]
    write(tmp_path, records)
    path = segment_path(tmp_path, "s", 0)
    data = path.read_bytes()
    second = num_before + HEADER_BYTES
    first_border = -(-second // 512) * 512
    for written in range(first_border, len(data), 512):
        path.write_bytes(data[:written] + bytes(len(data) - written))
        assert pairs(tmp_path) == records[:1], written
        path.write_bytes(data[:written] + bytes(len(data) - written + 10_000))
        assert pairs(tmp_path) == records[:1], written


@pytest.mark.parametrize("size", [511, 512, 513, 1024, 1025])
def test_damage_at_the_tail_is_no_torn_tail(tmp_path: Path, size: int) -> None:
    """Wherever the record ends in its sector."""
    write(tmp_path, [(1, b"x" * (size - HEADER_BYTES))])
    path = segment_path(tmp_path, "s", 0)
    for byte in (0, HEADER_BYTES - 1, HEADER_BYTES, size - 1):
        with flipped(path, 8 * byte), pytest.raises(JournalCorrupt, match="offset 0 "):
            pairs(tmp_path)


@pytest.mark.parametrize("place", [5, HEADER_BYTES + 5])
def test_zeros_at_the_tail_do_not_hide_damage_before_them(tmp_path: Path, place: int) -> None:
    write(tmp_path, [(1, b"x" * 2000), (1, bytes(2000))])
    path = segment_path(tmp_path, "s", 0)
    data = bytearray(path.read_bytes()) + bytes(3000)
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalCorrupt, match="offset 0 "):
        pairs(tmp_path)


# -- damage


def read_until_damage(folder: Path) -> tuple[list[Pair], str]:
    """What was read, and what the report says; empty if there was none."""
    found: list[Pair] = []
    try:
        for record in read(folder, "s"):
            found.append((record.kind, record.payload))
    except JournalCorrupt as error:
        return found, str(error)
    return found, ""


def test_a_thousand_single_bit_flips_are_all_reported(tmp_path: Path, small: list[Position]) -> None:
    rng = random.Random(1)
    starts = [(segment_path(tmp_path, "s", p.segment), p.offset - HEADER_BYTES) for p in small]
    bits = [(path, bit) for path in sorted(tmp_path.iterdir()) for bit in range(8 * path.stat().st_size)]
    for path, bit in rng.choices(bits, k=1000):
        hit = max(n for n, (of, offset) in enumerate(starts) if of == path and offset <= bit // 8)
        with flipped(path, bit):
            found, report = read_until_damage(tmp_path)
        assert found == SMALL[:hit], "all before the damage, nothing after it"
        assert report.startswith(f"{path}: the record at offset {starts[hit][1]} is damaged"), (path.name, bit)
    assert pairs(tmp_path) == SMALL


def test_flips_in_a_torn_journal_are_reported_or_in_the_torn_tail(tmp_path: Path) -> None:
    (*_, last) = write(tmp_path, SMALL)
    path = segment_path(tmp_path, "s", 0)
    for cut in (last.offset + 3, last.offset, last.offset - 5):
        os.truncate(path, cut)
        for bit in range(8 * cut):
            with flipped(path, bit):
                found, report = read_until_damage(tmp_path)
            assert found == SMALL[: len(found)]
            assert report or (len(found) == len(SMALL) - 1 and bit // 8 >= last.offset - HEADER_BYTES), (cut, bit)


@settings(max_examples=40)
@given(st.lists(PAIRS, min_size=1, max_size=6), st.data())
def test_many_flips_never_decode_wrong_data(records: list[Pair], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), records)
        path = segment_path(Path(name), "s", 0)
        damaged = bytearray(path.read_bytes())
        for bit in data.draw(st.lists(st.integers(0, 8 * len(damaged) - 1), min_size=1, max_size=20, unique=True)):
            damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found, report = read_until_damage(Path(name))
        assert found == records[: len(found)]
        assert report or len(found) < len(records)


def test_bytes_that_are_no_record_are_reported(tmp_path: Path, small: list[Position]) -> None:
    path = segment_path(tmp_path, "s", 1)
    end = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"something else entirely")
    with pytest.raises(JournalCorrupt, match=f"s_000001.log: the record at offset {end} is damaged") as caught:
        pairs(tmp_path)
    assert isinstance(caught.value, UserError)
    assert f"move {tmp_path} away" in str(caught.value)


def test_reading_one_record_finds_its_damage(tmp_path: Path, small: list[Position]) -> None:
    path, position = segment_path(tmp_path, "s", 0), small[2]
    start, end = position.offset - HEADER_BYTES, position.offset + position.num_bytes
    for bit in range(8 * start, 8 * end):
        damage = pytest.raises(JournalCorrupt, match=f"s_000000.log: the record at offset {start} is damaged")
        with flipped(path, bit), damage:
            read_at(tmp_path, "s", position)
    assert read_at(tmp_path, "s", position) == SMALL[2][1]
    os.truncate(path, end - 1)
    with pytest.raises(JournalCorrupt):
        read_at(tmp_path, "s", position)
    assert read_at(tmp_path, "s", small[0]) == b"first"


# -- a disk that does not take it


@pytest.mark.parametrize("num_taken", [0, 10, HEADER_BYTES, 40])
def test_a_full_disk_costs_one_record_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_taken: int
) -> None:
    writer = JournalWriter(tmp_path, "s")
    writer.append(1, b"before")
    path, real_write, taken = segment_path(tmp_path, "s", 0), os.write, []

    def write_to_a_full_disk(file: int, parts: list[bytes]) -> int:
        if sum(taken) >= num_taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken.append(real_write(file, b"".join(parts)[:num_taken]))
        return taken[-1]

    size = path.stat().st_size
    monkeypatch.setattr(os, "writev", write_to_a_full_disk)
    with pytest.raises(JournalWriteError, match=f"cannot be written: {path}: No space left on device; free") as caught:
        writer.append(1, b"x" * 100)
    monkeypatch.undo()
    assert isinstance(caught.value, RunFailed)
    assert sum(taken) == num_taken
    assert path.stat().st_size == size
    position = writer.append(1, b"after")
    writer.close()
    assert pairs(tmp_path) == [(1, b"before"), (1, b"after")]
    assert read_at(tmp_path, "s", position) == b"after"


@pytest.mark.parametrize("most", [1, HEADER_BYTES, 30])
def test_what_is_written_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(os, "writev", lambda file, parts: os.write(file, b"".join(parts)[:most]))
    writer = JournalWriter(tmp_path, "s")
    for payload in (bytes(range(100)), b"", b"x"):
        writer.append(1, memoryview(payload))
    writer.close()
    assert pairs(tmp_path) == [(1, bytes(range(100))), (1, b""), (1, b"x")]


def test_a_disk_too_full_for_another_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JournalWriter(tmp_path, "s", segment_bytes=1)
    writer.append(1, b"before")
    real_open = os.open

    def open_on_a_full_disk(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", open_on_a_full_disk)
    for _ in range(2):
        with pytest.raises(JournalWriteError, match=r"s_000001.log: No space left"):
            writer.append(1, b"refused")
    monkeypatch.undo()
    writer.append(1, b"after")
    writer.close()
    assert pairs(tmp_path) == [(1, b"before"), (1, b"after")]


LIMITED = """
import json, resource, sys
from pathlib import Path
from asyncrl.buffer.log import JournalWriteError, JournalWriter, segment_path

folder = Path(sys.argv[1])
writer = JournalWriter(folder, "s")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
errors, sizes = [], []
for number in range(5):
    try:
        writer.append(number, bytes([65 + number]) * 300)
    except JournalWriteError as error:
        errors.append(str(error))
    sizes.append(segment_path(folder, "s", 0).stat().st_size)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
writer.append(9, b"after")
writer.close()
print(json.dumps([errors, sizes]))
"""


def test_a_real_partial_write_leaves_whole_records(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    errors, sizes = json.loads(done.stdout)
    path = segment_path(tmp_path, "s", 0)
    assert sizes == [317, 634, 951, 951, 951], "the 49 bytes that went in were taken back"
    assert (
        errors
        == [f"the journal cannot be written: {path}: {os.strerror(errno.EFBIG)}; free or repair the disk and resume"]
        * 2
    )
    assert pairs(tmp_path) == [*((n, bytes([65 + n]) * 300) for n in range(3)), (9, b"after")]


def test_after_a_failed_fsync_no_later_one_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system reports a page that it could not write once, and forgets it: the next fsync succeeds without it."""
    writer = JournalWriter(tmp_path, "s")
    writer.append(1, b"lost")
    failures = [OSError(errno.EIO, os.strerror(errno.EIO))]
    real_fsync = os.fsync

    def fsync(file: int) -> None:
        if failures:
            raise failures.pop()
        real_fsync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    for attempt in (writer.sync, writer.sync, writer.roll, writer.close):
        with pytest.raises(JournalWriteError, match=r"s_000000.log: Input/output error"):
            attempt()


def test_a_segment_that_cannot_be_opened_leaves_the_writer_on_the_one_before(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "s")
    (tmp_path / "s_000001.log").mkdir()
    with pytest.raises(JournalWriteError, match=r"s_000001.log: File exists"):
        writer.roll()
    position = writer.append(1, b"still open")
    writer.close()
    assert read_at(tmp_path, "s", position) == b"still open"
