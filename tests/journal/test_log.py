"""The journal returns the records that were written, whole and in order, or says that it is damaged."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.journal.log import GROUP, LEASE, JournalCorrupt, JournalWriter, Record, read

RECORDS = st.builds(Record, st.integers(0, 255), st.binary(max_size=40))
SMALL = [Record(GROUP, b"first"), Record(LEASE, b""), Record(GROUP, b"AJ01 in a payload"), Record(LEASE, b"\x00" * 9)]


def write(folder: Path, records: list[Record]) -> Path:
    writer = JournalWriter(folder)
    for record in records:
        writer.append(record.kind, record.payload)
    writer.close()
    return writer.path


def ends(folder: Path, records: list[Record]) -> list[int]:
    """Size of the file after 0, 1, … records."""
    writer = JournalWriter(folder)
    sizes = [0]
    for record in records:
        writer.append(record.kind, record.payload)
        sizes.append(writer.path.stat().st_size)
    writer.close()
    return sizes


@given(st.lists(st.lists(RECORDS, max_size=5), max_size=4))
def test_all_segments_are_read_back_in_order(segments: list[list[Record]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        paths = [write(Path(name), records) for records in segments]
        assert len(set(paths)) == len(segments)
        assert list(read(Path(name))) == [record for records in segments for record in records]


def test_more_than_ten_segments_keep_their_order(tmp_path: Path) -> None:
    records = [Record(GROUP, bytes([i])) for i in range(12)]
    for record in records:
        write(tmp_path, [record])
    assert list(read(tmp_path)) == records


def test_a_record_can_be_read_as_soon_as_append_returns(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path)
    for num, record in enumerate(SMALL, 1):
        writer.append(record.kind, record.payload)
        assert list(read(tmp_path)) == SMALL[:num]
    writer.close()


def test_a_new_writer_leaves_earlier_segments_alone(tmp_path: Path) -> None:
    before = write(tmp_path, SMALL)
    data = before.read_bytes()
    write(tmp_path, SMALL[:1])
    assert before.read_bytes() == data


def test_an_empty_or_missing_folder_has_no_records(tmp_path: Path) -> None:
    assert list(read(tmp_path)) == []
    assert list(read(tmp_path / "missing")) == []


def test_a_cut_at_any_byte_leaves_exactly_the_whole_records(tmp_path: Path) -> None:
    sizes = ends(tmp_path, SMALL)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    assert sizes[-1] == len(data)
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        assert list(read(tmp_path)) == SMALL[: sum(size <= cut for size in sizes[1:])], cut


def test_a_torn_segment_does_not_hide_the_next_one(tmp_path: Path) -> None:
    torn = write(tmp_path, SMALL)
    write(tmp_path, SMALL[:1])
    torn.write_bytes(torn.read_bytes()[:-1])
    assert list(read(tmp_path)) == SMALL[:-1] + SMALL[:1]


def test_every_single_bit_flip_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        assert_prefix_or_corrupt(path, data, [bit], SMALL)


@given(st.lists(RECORDS, min_size=1, max_size=6), st.data())
def test_bit_flips_never_decode_wrong_data(records: list[Record], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name), records)
        original = path.read_bytes()
        bits = data.draw(st.lists(st.integers(0, 8 * len(original) - 1), min_size=1, max_size=20, unique=True))
        assert_prefix_or_corrupt(path, original, bits, records)


def assert_prefix_or_corrupt(path: Path, original: bytes, bits: list[int], records: list[Record]) -> None:
    damaged = bytearray(original)
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    found, reported = [], False
    try:
        for record in read(path.parent):
            found.append(record)
    except JournalCorrupt:
        reported = True
    assert found == records[: len(found)]
    assert reported or len(found) < len(records), "a damaged journal was read as a whole one"


@pytest.mark.parametrize("place", ["kind", "length", "crc", "header crc", "payload"])
def test_damage_before_the_tail_names_file_and_offset(tmp_path: Path, place: str) -> None:
    first, second, *_ = ends(tmp_path, SMALL)[1:]
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    places = {"kind": 4, "length": 8, "crc": 9, "header crc": 13}
    data[second + 17 if place == "payload" else first + places[place]] ^= 1
    path.write_bytes(data)
    offset = second if place == "payload" else first
    with pytest.raises(JournalCorrupt, match=rf"{path.name}: the record at offset {offset} "):
        list(read(tmp_path))


def test_bytes_that_are_no_record_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    end = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"something else entirely")
    with pytest.raises(JournalCorrupt, match=f"{path.name}: no record starts at offset {end}"):
        list(read(tmp_path))
