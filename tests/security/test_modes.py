"""A run directory is its owner's alone, or its group's to read, whatever the umask is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import stranger

from asyncrl.orchestrator.run import make_run_dir
from asyncrl.report.report import write_report
from asyncrl.storage.run_dir import alike, make_alike, open_to, replace


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(*paths: Path) -> list[str]:
    return [oct(path.stat().st_mode & 0o777) for path in paths]


@pytest.mark.parametrize(
    ("readers", "expected"),
    [("owner", ["0o700", "0o700", "0o600", "0o600"]), ("group", ["0o750", "0o750", "0o640", "0o640"])],
)
def test_what_a_run_makes_is_for_its_readers(umask: int, readers: str, expected: list[str], tmp_path: Path) -> None:
    run_dir = make_run_dir(tmp_path / "runs/mine", may_rename=False)
    assert modes(run_dir) == ["0o700"]
    with open_to(run_dir, readers):
        (run_dir / "journal").mkdir()
        (run_dir / "journal/log").write_text("prompts")
        replace(run_dir / "recipe.yaml", "model: x")
    assert modes(run_dir, run_dir / "journal", run_dir / "journal/log", run_dir / "recipe.yaml") == expected
    (outside := tmp_path / "outside").touch()
    assert modes(outside) == [oct(0o666 & ~umask)]


def test_an_actor_learns_it_from_the_directory(umask: int, tmp_path: Path) -> None:
    run_dir = make_run_dir(tmp_path / "mine", may_rename=False)
    run_dir.chmod(0o750)
    assert make_alike(run_dir) == umask
    (run_dir / "weights").touch()
    assert modes(run_dir / "weights") == ["0o640"]


def test_a_node_that_does_not_see_it_makes_it_its_users(tmp_path: Path) -> None:
    with alike(tmp_path / "elsewhere/run"):
        (tmp_path / "elsewhere/run/stacks").mkdir(parents=True)
    assert modes(*(tmp_path / "elsewhere").rglob("*")) == ["0o700"] * 2


def test_an_older_run_is_closed_when_it_goes_on(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with open_to(tmp_path, "owner"):
        assert modes(tmp_path) == ["0o700"]


@pytest.mark.parametrize("readers", ["owner", "group"])
def test_a_report_made_anew_is_for_the_runs_readers(umask: int, readers: str, tmp_path: Path) -> None:
    """One elsewhere is for whom the user's own umask says."""
    stranger.write_run(run_dir := tmp_path / "mine")
    with open_to(run_dir, readers):
        pass
    assert modes(write_report(run_dir)) == ["0o600" if readers == "owner" else "0o640"]
    assert modes(write_report(run_dir, tmp_path / "page.html")) == [oct(0o666 & ~umask)]
