"""A run directory behind a URL: what is pushed can be fetched and resumed from, whenever the machine is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from asyncrl.cli import main
from asyncrl.errors import RunFailed, UserError
from asyncrl.storage import atomic, mirror
from asyncrl.storage.mirror import Mirror

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ASYNCRL_CACHE", str(tmp_path / "cache"))
    return f"file://{tmp_path}/bucket/run"


@pytest.fixture
def folder(url: str) -> Path:
    folder = mirror.local_copy(url)
    (folder / "journal").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("model: x\n")
    (folder / "journal/control_000000.log").write_bytes(b"c" * 100)
    (folder / "journal/groups_000000.log").write_bytes(b"g" * 100)
    checkpoint(folder, 2)
    return folder


def checkpoint(folder: Path, step: int) -> Path:
    part = atomic.begin(folder / "checkpoints", step)
    (part / "control.json").write_text(f'{{"steps_done": {step}}}')
    return atomic.commit(part)


def files(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file() and ".push" not in path.parts]
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in found if path.name not in (".owner", ".fetched")
    }


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASYNCRL_CACHE", str(tmp_path / "another"))


def test_what_is_pushed_is_fetched(url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pusher = Mirror(url, folder)
    assert not mirror.exists(url)
    pusher.begin()
    assert pusher.push() == 5
    assert pusher.push() == 0
    with (folder / "journal/groups_000000.log").open("ab") as file:
        file.write(b"more")
    assert pusher.push() == 1
    before = files(folder)
    assert mirror.fetch(url) == folder  # this machine wrote last
    another_machine(monkeypatch, tmp_path)
    assert files(mirror.fetch(url)) == before
    view = mirror.fetch(url, checkpoints=False)
    assert (view / "recipe.yaml").exists()


def test_what_is_no_longer_needed_goes_after_what_takes_its_place(url: str, folder: Path) -> None:
    pusher = Mirror(url, folder)
    pusher.begin()
    pusher.push()
    shutil.rmtree(folder / "checkpoints/step_000002")
    checkpoint(folder, 4)
    (folder / "journal/control_000000.log").unlink()
    (folder / "journal/control_000001.log").write_bytes(b"d")
    deleted: list[str] = []
    delete = pusher._remote.delete
    pusher._remote.delete = lambda name: (deleted.append(name), delete(name))[1]  # type: ignore[method-assign]
    pusher.push()
    bucket = files(Path(url.removeprefix("file://")))
    assert set(bucket) - {"MANIFEST.json"} == set(files(folder))
    assert "journal/control_000000.log" in deleted


@pytest.mark.parametrize("fails_after", range(6))
def test_a_push_that_breaks_off_leaves_the_state_before_or_after(
    url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_after: int
) -> None:
    """After each number of uploads: control, groups and checkpoints always belong together."""
    pusher = Mirror(url, folder)
    pusher.begin()
    pusher.push()
    before = files(folder)
    with (folder / "journal/control_000000.log").open("ab") as file:
        file.write(b"more")
    checkpoint(folder, 4)
    after = files(folder)
    upload, count = pusher._remote.upload, iter(range(100))

    def failing(name: str, path: Path, size: int) -> None:
        if next(count) == fails_after:
            raise UserError("the network is gone")
        upload(name, path, size)

    pusher._remote.upload = failing  # type: ignore[method-assign]
    try:
        pusher.push()
        expected = after
    except UserError:
        expected = before
    another_machine(monkeypatch, tmp_path)
    assert files(mirror.fetch(url)) == expected


def test_a_driver_that_was_taken_over_stops(
    url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Mirror(url, folder)
    first.begin()
    first.push()
    another_machine(monkeypatch, tmp_path)
    copy = mirror.fetch(url)
    assert mirror.is_newest(url, copy)
    Mirror(url, copy).begin()
    with pytest.raises(RunFailed, match=r"another driver has taken .* over"):
        first.push()
    assert not mirror.is_newest(url, folder)


def test_a_copy_that_is_older_is_kept_aside(
    url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pusher = Mirror(url, folder)
    pusher.begin()
    pusher.push()
    another_machine(monkeypatch, tmp_path)
    copy = mirror.fetch(url)
    other = Mirror(url, copy)
    other.begin()
    (copy / "news.txt").write_text("new")
    other.push()
    monkeypatch.setenv("ASYNCRL_CACHE", str(tmp_path / "cache"))
    assert (mirror.fetch(url) / "news.txt").exists()
    assert not (folder.with_name(folder.name + ".old-1") / "news.txt").exists()


@pytest.mark.parametrize(
    ("run_dir", "said"),
    [
        ("nosuch://bucket/run", "nosuch"),
        ("file:///proc/nowhere/run", "is not a run directory: it has no MANIFEST.json"),
    ],
)
def test_a_url_without_a_run(run_dir: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", run_dir]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_goes_on_on_another_machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    fast = ["rollout.engine=simulated", "track.wandb=off"]
    assert main(["train", "recipes/tiny.yaml", *fast, "max_steps=4", f"run_dir={url}"]) == 0
    another_machine(monkeypatch, tmp_path)
    assert main(["resume", url, "max_steps=6", "--trust"]) == 0
    bucket = Path(url.removeprefix("file://"))
    assert (bucket / "checkpoints/step_000006/COMPLETE").exists()
    assert len((bucket / "metrics.jsonl").read_text().splitlines()) == 6
    assert (bucket / "report.html").stat().st_size > 1000
    assert not os.path.exists(bucket / ".lock")
