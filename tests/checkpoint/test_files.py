"""The trainer's part of a checkpoint: what several ranks wrote is read as one, and no more of it than is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asyncrl.checkpoint import files

WHOLE = torch.arange(30.0).view(10, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows of one tensor from three ranks, all of another from the first."""
    for rank, (first, stop) in enumerate([(0, 4), (4, 8), (8, 10)]):
        own = {f"model.a@{first}": WHOLE[first:stop]}
        files.write(own | ({"step": torch.tensor(7.0)} if rank == 0 else {}), tmp_path, rank)
    return tmp_path


@pytest.mark.parametrize("rows", [slice(0, 4), slice(2, 9), slice(4, 8), slice(9, 10), slice(0, 0), slice(10, 10)])
def test_some_rows(folder: Path, rows: slice) -> None:
    found = files.read(folder)["model.a"][rows]
    assert found.shape == WHOLE[rows].shape
    assert torch.equal(found, WHOLE[rows])


def test_all_of_it(folder: Path) -> None:
    saved = files.read(folder)
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == files.shapes(folder)
    assert torch.equal(saved["model.a"][...], WHOLE)
    assert saved["step"][...] == 7
    assert [*files.read(folder, prefix="model.")] == ["model.a"]


def test_only_what_is_asked_for_is_read(folder: Path) -> None:
    """As a rank that holds other rows than who wrote them: two files of three."""
    rows = files.read(folder)["model.a"]
    assert isinstance(rows, files.Rows)
    read: list[str] = []

    class Watched:
        def __init__(self, file: object) -> None:
            self.file = file

        def get_slice(self, key: str) -> object:
            part = self.file.get_slice(key)  # type: ignore[attr-defined]
            read_one = type("Part", (), {"get_shape": lambda _: part.get_shape(), "__getitem__": lambda _, s: read_(s)})

            def read_(wanted: slice) -> torch.Tensor:
                read.append(f"{key}[{wanted.start}:{wanted.stop}]")
                return part[wanted]  # type: ignore[no-any-return]

            return read_one()

    watched = files.Rows(folder, rows.shape, [(first, key, Watched(file)) for first, key, file in rows.parts])
    assert torch.equal(watched[5:9], WHOLE[5:9])
    assert read == ["model.a@4[1:4]", "model.a@8[0:1]"]
