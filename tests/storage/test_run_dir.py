"""The one place where files of a run directory are opened and replaced."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from asyncrl.errors import UserError
from asyncrl.storage import run_dir


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("fails", ["write", "replace"])
def test_a_file_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, durable: bool
) -> None:
    path = tmp_path / "status.json"
    run_dir.replace(path, "before", durable)
    assert path.read_text() == "before"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    def write() -> None:
        with run_dir.replacing(path, durable) as file:
            file.write(b"aft")
            if fails == "write":
                full()
            monkeypatch.setattr(os, "replace", full)

    with pytest.raises(OSError, match="disk full"):
        write()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_pair_of_surrogates_is_written_as_its_escape(tmp_path: Path) -> None:
    run_dir.replace(tmp_path / "report.html", "half \ud83d")
    assert run_dir.text(tmp_path, "report.html") == "half \\ud83d"


def test_what_is_missing_and_what_is_too_long(tmp_path: Path) -> None:
    assert run_dir.read(tmp_path, "a") is None
    assert run_dir.text(tmp_path, "none/a") == ""
    assert run_dir.json_object(tmp_path, "a") == {}
    assert run_dir.names(tmp_path, "none") == []
    (tmp_path / "a").write_text("[" * 100_000)
    assert run_dir.json_object(tmp_path, "a") == {}
    with pytest.raises(UserError, match="more than 99999 bytes"):
        run_dir.read(tmp_path, "a", most=99_999)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("recipe.yaml", True),
        ("checkpoints/step_000002/model/a b-ü.json", True),
        ("a/..b/c", True),
        ("..", False),
        ("a/..", False),
        ("/a", False),
        ("a/", False),
        ("", False),
        ("a\\b", False),
        ("a\0", False),
        ("\udc80", False),
        (None, False),
    ],
)
def test_names_that_others_wrote(name: object, plain: bool) -> None:
    assert run_dir.is_plain(name) == plain
