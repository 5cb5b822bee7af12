"""A container's limit is what there is."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from asyncrl import memory

GIB = 2**30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process is in the group a/b of a machine with control groups of version 2."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "own").write_text("0::/a/b\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")
    return tmp_path


def limit(folder: Path, most: str, used: int, of_files: int = 0) -> None:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {of_files}\n")


def test_without_a_limit_it_is_the_machine(groups: Path) -> None:
    limit(groups / "a/b", "max", 3 * GIB)
    assert memory.total() == psutil.virtual_memory().total
    assert memory.available() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_the_closest_limit_counts(groups: Path) -> None:
    limit(groups, str(2**60), 0)
    limit(groups / "a", str(GIB // 2), GIB // 4, of_files=GIB // 8)
    limit(groups / "a/b", str(GIB), 0)
    assert memory.total() == GIB // 2
    assert memory.available() == GIB // 2 - GIB // 8


def test_of_version_1(groups: Path) -> None:
    (groups / "memory").mkdir()
    (groups / "memory/memory.limit_in_bytes").write_text(str(GIB))
    (groups / "memory/memory.usage_in_bytes").write_text(str(2 * GIB))
    (groups / "own").write_text("5:devices:/\n4:memory:/not/seen/from/here\n0::/\n")
    assert (memory.total(), memory.available()) == (GIB, 0)
