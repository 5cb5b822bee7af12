"""Reading a run is reading: no link of a run directory is followed, nothing but a new file is written."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import stranger

from asyncrl.cli import main
from asyncrl.errors import UserError
from asyncrl.report.inspection import Filters, find
from asyncrl.report.watch import Following, app

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user: run the suite as root")
COMMANDS = {
    "recipe.yaml": "report",
    "metrics.jsonl": "report",
    "samples.jsonl": "report",
    "summary.json": "report",
    "status.json": "report",
    "trace.json": "report",
    "journal/groups_000000.log": "inspect",
    "journal/trained_000000.log": "inspect",
    "journal/control_000000.log": "inspect",
    "fingerprint.json": "resume",
    "processes.json": "resume",
    "journal": "replay",
}


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_a_whole_run_is_read(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_dir)]) == main(["inspect", str(run_dir), "--show"]) == 0
    assert "four" in capsys.readouterr().out
    assert (run_dir / "report.html").stat().st_size > 10_000


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "command", "kind"),
    [
        *((name, command, kind) for name, command in COMMANDS.items() for kind in ("link", "pipe", "device")),
        *((name, command, "folder") for name, command in COMMANDS.items() if command in ("report", "inspect")),
    ],
)
def test_what_is_no_file_is_one_sentence(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, command: str, kind: str
) -> None:
    path = run_dir / name
    if path.exists():
        path.rename(tmp_path / "original")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "original")
    said = stranger.sentence(capsys, command, str(run_dir))
    assert f"{path} is a link, or neither a file nor a folder" in said


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["waiting.txt", ".lock", "status.json"])
def test_a_page_that_follows_a_run_follows_no_link(run_dir: Path, name: str) -> None:
    (run_dir / ".lock").write_text("1 elsewhere\n")
    (run_dir / "summary.json").unlink()
    stranger.replaced_by_link(run_dir / name, Path("/dev/zero"))
    with pytest.raises(UserError, match=rf"{name} is a link"):
        app(run_dir, "token")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["metrics.jsonl", "recipe.yaml", ".lock"])
def test_a_page_says_that_a_file_became_a_link(run_dir: Path, name: str) -> None:
    """And has its other parts, and says it no more when that is over."""
    following = Following(run_dir)
    seen, before = following.changed(0)
    (moved := run_dir / "moved").write_text("1 elsewhere\n")
    if (run_dir / name).exists():
        (run_dir / name).rename(moved)
    stranger.replaced_by_link(run_dir / name, moved)
    seen, changed = following.changed(seen)
    assert set(changed) == {"state"}
    assert f"{name} is a link, or neither a file nor a folder" in changed["state"]
    assert following.changed(0)[1] == {**before, **changed}
    (run_dir / name).unlink()
    moved.rename(run_dir / name)
    _, changed = following.changed(seen)
    assert set(changed) == {"state"}
    assert "is a link" not in changed["state"]


def test_a_report_is_written_beside_a_link_not_through_it(run_dir: Path, tmp_path: Path) -> None:
    keys = tmp_path / "authorized_keys"
    keys.write_text("mine\n")
    stranger.replaced_by_link(run_dir / "report.html", keys)
    assert main(["report", str(run_dir)]) == 0
    assert keys.read_text() == "mine\n"
    assert not (run_dir / "report.html").is_symlink()
    assert not [path for path in run_dir.iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize("command", ["compare", "inspect"])
def test_no_output_goes_through_a_link(run_dir: Path, tmp_path: Path, command: str) -> None:
    mine, out = tmp_path / "mine", tmp_path / "here/out"
    mine.write_text("mine\n")
    out.symlink_to(mine)
    option = "--out" if command == "compare" else "--export"
    assert main([command, str(run_dir), option, str(out)]) == 0
    assert mine.read_text() == "mine\n"
    assert out.stat().st_size > 1000


@pytest.mark.parametrize("kind", ["page", "folder", "link", "pipe"])
@pytest.mark.parametrize("command", ["compare", pytest.param("report", marks=as_root)])
def test_no_file_of_the_users_own_goes_away(
    run_dir: Path, working_directory: Path, capsys: pytest.CaptureFixture[str], command: str, kind: str
) -> None:
    """Whatever the run is called by who made it."""
    if command == "report":
        run_dir = run_dir.rename(run_dir.with_name("index"))
        os.chown(run_dir, stranger.NOBODY, -1)
    mine = working_directory / ("index.html" if command == "report" else "compare.html")
    other = working_directory / "mine"
    other.write_text("<html>mine\n")
    {"page": other.rename, "folder": Path.mkdir, "link": lambda to: to.symlink_to(other), "pipe": os.mkfifo}[kind](mine)
    before = mine.lstat()
    said = stranger.sentence(capsys, command, str(run_dir))
    assert f"{mine.name} exists and is no page of asyncrl's; say --out FILE" in said
    assert mine.lstat() == before
    mine.rename(working_directory / "moved")
    # A page of asyncrl's is written anew.
    assert [main([command, str(run_dir)]) for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(
    ("command", "option", "out"),
    [
        *itertools.product(
            ["report", "compare"],
            ["--out"],
            ["folder", ".", "/", "none/page.html", "mine/page.html", "pipe", "device"],
        ),
        *itertools.product(["inspect"], ["--export"], ["folder", ".", "/", "mine/page.html", "pipe", "device"]),
    ],
)
def test_a_place_where_no_page_can_be_is_one_sentence(
    run_dir: Path, working_directory: Path, capsys: pytest.CaptureFixture[str], command: str, option: str, out: str
) -> None:
    (working_directory / "folder").mkdir()
    (working_directory / "mine").touch()
    os.mkfifo(working_directory / "pipe")
    (working_directory / "device").symlink_to("/dev/null")
    said = stranger.sentence(capsys, command, str(run_dir), option, out)
    assert (f"--export: {out}: " if option == "--export" else f"{out} cannot be written: ") in said
    assert sorted(os.listdir(working_directory)) == ["device", "folder", "mine", "pipe"]
    assert (working_directory / "device").is_symlink()


@as_root
def test_nothing_is_written_into_another_users_directory(
    run_dir: Path, working_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "report.html").unlink(missing_ok=True)
    os.chown(run_dir, stranger.NOBODY, stranger.NOBODY)
    before = sorted(os.listdir(run_dir))
    assert main(["report", str(run_dir)]) == 0
    assert capsys.readouterr().out == "run.html\n"
    assert (working_directory / "run.html").stat().st_size > 10_000
    assert sorted(os.listdir(run_dir)) == before
    assert main(["report", str(run_dir), "--out", str(run_dir / "report.html")]) == 0
    assert (run_dir / "report.html").exists()


def test_a_directory_may_be_named_through_a_link(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(run_dir)
    assert main(["report", str(tmp_path / "latest")]) == 0


def test_segments_are_those_that_asyncrl_names(run_dir: Path) -> None:
    for name in (
        "groups_1x.log",
        "groups_0000007.log",
        "groups_\u0660\u0660\u0660\u0660\u0660\u0661.log",
        f"groups_{'9' * 100}.log",
    ):
        (run_dir / "journal" / name).write_text("?")
    assert len(list(find(run_dir, Filters()))) == 2
