"""Whoever can write to a bucket writes nothing on the machine of those who look at its runs, but the copy."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import stranger

from asyncrl.errors import RunFailed, UserError
from asyncrl.storage import mirror
from asyncrl.storage.mirror import Mirror

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
HOSTILE: list[tuple[str, Any]] = [
    ("../../.bashrc", 5),
    ("journal/../../../.bashrc", 5),
    ("/tmp/.bashrc", 5),
    ("journal//x", 5),
    ("./recipe.yaml", 5),
    ("a\\..\\b", 5),
    ("new\nline", 5),
    ("\x1b[2J", 5),
    ("", 5),
    ("/".join("a" * 40), 5),
    ("recipe.yaml", -1),
    ("recipe.yaml", 1.5),
    ("recipe.yaml", "5"),
    ("recipe.yaml", True),
    ("recipe.yaml", None),
    ("news.txt/inner", 5),
    (".owner", 5),
    (".owner/inner", 5),
    (".fetched/inner", 5),
    (".lock/inner", 5),
]


@pytest.fixture(params=["file", "http", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a bucket; s3 and gs are reached by the code that reaches http and memory, through fsspec."""
    monkeypatch.setenv("ASYNCRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    bucket = tmp_path / "bucket"
    (bucket / "run").mkdir(parents=True)
    if request.param == "file":
        yield f"file://{bucket}/run"
    elif request.param == "memory":
        yield "memory://bucket/run"
        fsspec.filesystem("memory").rm("/bucket", recursive=True)
    else:
        handler = functools.partial(_Quiet, directory=str(bucket))
        with _Server(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/run"
            server.shutdown()


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has enough hangs up."""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


def put(url: str, tmp_path: Path, name: str, content: bytes) -> None:
    """What the attacker does, with a client of their own."""
    if url.startswith("memory"):
        fsspec.filesystem("memory").pipe_file(f"/bucket/run/{name}", content)
    else:
        (tmp_path / "bucket/run" / name).write_bytes(content)


def manifest(url: str, tmp_path: Path, files: Any, owner: Any = "0" * 16) -> None:
    put(url, tmp_path, "MANIFEST.json", json.dumps({"owner": owner, "files": files}).encode())


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_the_manifest_lists_is_fetched(url: str, tmp_path: Path) -> None:
    put(url, tmp_path, "recipe.yaml", b"model: x\nmore than it lists")
    manifest(url, tmp_path, {"recipe.yaml": 9})
    assert (mirror.fetch(url, checkpoints=False) / "recipe.yaml").read_text() == "model: x\n"


@pytest.mark.parametrize(("name", "size"), HOSTILE)
def test_a_manifest_with_other_names_is_refused(
    url: str, tmp_path: Path, name: str, size: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    put(url, tmp_path, "recipe.yaml", b"model")
    put(url, tmp_path, "news.txt", b"news!")
    manifest(url, tmp_path, {"recipe.yaml": 5, "news.txt": 5, name: size})
    before = below(tmp_path)
    for command in ("report", "inspect", "compare", "watch", "resume", "replay"):
        said = stranger.sentence(capsys, command, url)
        assert "which no run has written; nothing is fetched or deleted" in said
        assert said.isprintable() or said.rstrip("\n").isprintable()
    assert below(tmp_path) == before


@pytest.mark.parametrize("name", ["report.html", "recipe.yaml", "metrics.jsonl", "summary.json", "samples.jsonl"])
def test_a_folder_in_the_place_of_a_file_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("ASYNCRL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bucket").mkdir()
    url = f"file://{tmp_path}/bucket/run"
    stranger.write_run(tmp_path / "bucket/run")
    (tmp_path / "bucket/run" / name).unlink(missing_ok=True)
    (tmp_path / "bucket/run" / name).mkdir()
    (tmp_path / "bucket/run" / name / "x").write_text("model")
    files = {"recipe.yaml": 5, "metrics.jsonl": 5} | {f"{name}/x": 5}
    files.pop(name, None)
    manifest(url, tmp_path, files)
    assert f"{name} " in stranger.sentence(capsys, "report", url)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"owner": 1, "files": {}}',
        b'{"owner": "\\ud800", "files": {}}',
        b'{"owner": "a"}',
    ],
)
def test_what_is_no_manifest_is_one_sentence(
    url: str, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    put(url, tmp_path, "MANIFEST.json", content)
    assert "is no manifest of a run" in stranger.sentence(capsys, "report", url)


def test_a_manifest_of_a_million_files_is_refused(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though all of them are empty."""
    manifest(url, tmp_path, {f"f{number}": 0 for number in range(10**6)})
    assert "more than any run has" in stranger.sentence(capsys, "report", url)


def test_no_more_is_fetched_than_there_is_room_for(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest(url, tmp_path, {"recipe.yaml": 2**62})
    assert "has room for" in stranger.sentence(capsys, "report", url)
    manifest(url, tmp_path, {"recipe.yaml": 10**6})
    put(url, tmp_path, "recipe.yaml", b"short")
    assert "lacks recipe.yaml, or its end" in stranger.sentence(capsys, "report", url)
    assert not list(tmp_path.rglob("cache/**/recipe.yaml"))


def test_a_bucket_that_sends_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what it lists as five bytes."""

    class Endless(_Quiet):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            if self.path.endswith("MANIFEST.json"):
                self.wfile.write(b'{"owner": "a", "files": {"recipe.yaml": 5}}')
                return
            try:
                while True:
                    self.wfile.write(b"x" * 2**16)
            except OSError:
                return

    monkeypatch.setenv("ASYNCRL_CACHE", str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        folder = mirror.fetch(f"http://127.0.0.1:{server.server_port}/run", checkpoints=False)
        server.shutdown()
    assert (folder / "recipe.yaml").read_bytes() == b"xxxxx"


@pytest.mark.parametrize("name", ["MANIFEST.json", "recipe.yaml"])
def test_a_bucket_in_a_folder_has_no_links(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCRL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/MANIFEST.json").write_text('{"owner": "a", "files": {"recipe.yaml": 5}}')
    stranger.replaced_by_link(tmp_path / "run" / name, Path("/dev/zero"))
    with pytest.raises(UserError, match="is a link"):
        mirror.fetch(f"file://{tmp_path}/run", checkpoints=False)


@pytest.fixture
def pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Mirror, Path, Path]:
    """To a folder that its owner changes meanwhile: what pushes, the folder, and one beside it that is the user's."""
    monkeypatch.setenv("ASYNCRL_CACHE", str(tmp_path / "cache"))
    url, bucket = f"file://{tmp_path}/bucket/run", tmp_path / "bucket/run"
    (mine := tmp_path / "mine").mkdir()
    (mine / "keep").write_text("mine")
    folder = mirror.local_copy(url)
    (folder / "journal").mkdir(parents=True)
    for name in ("recipe.yaml", "journal/control_0.log", "journal/groups_0.log", "metrics.jsonl", "wandb/keep"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("model: x\n")
    bucket.mkdir(parents=True)
    return Mirror(url, folder), bucket, mine


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("recipe.yaml", "keep"),
        ("MANIFEST.json", "keep"),
        ("MANIFEST.json", "missing"),
        ("journal", ""),
        ("journal/control_0.log", "keep"),
        ("wandb", ""),
    ],
)
def test_a_push_follows_no_link(pushed: tuple[Mirror, Path, Path], name: str, target: str) -> None:
    pusher, bucket, mine = pushed
    (bucket / name).parent.mkdir(exist_ok=True)
    (bucket / name).symlink_to(mine / target)
    before = sorted(bucket.rglob("*"))
    with pytest.raises(UserError, match=f"{name}.* is a link"):
        pusher.begin()
    assert sorted(bucket.rglob("*")) == before
    if name == "MANIFEST.json":
        return
    (bucket / name).unlink()
    pusher.begin()
    (bucket / name).symlink_to(mine / target)
    with pytest.raises(UserError, match=f"{name}.* is a link"):
        pusher.push()
    assert {path.name: path.read_text() for path in mine.iterdir()} == {"keep": "mine"}


def test_a_push_waits_for_no_pipe(pushed: tuple[Mirror, Path, Path]) -> None:
    pusher, bucket, _ = pushed
    pusher.begin()
    os.mkfifo(bucket / "recipe.yaml")
    with pytest.raises(UserError, match=r"recipe\.yaml is a link"):
        pusher.push()


def test_a_push_deletes_nothing_behind_a_link(pushed: tuple[Mirror, Path, Path]) -> None:
    """That has taken the place of a folder which it has sent."""
    pusher, bucket, mine = pushed
    pusher.begin()
    assert pusher.push() == 5
    (bucket / "wandb").rename(bucket.parent / "aside")
    (bucket / "wandb").symlink_to(mine)
    (pusher._folder / "wandb/keep").unlink()
    with pytest.raises(UserError, match="wandb/keep is a link"):
        pusher.push()
    assert (mine / "keep").read_text() == "mine"


@pytest.mark.parametrize("owner", ["mine", pytest.param("theirs", marks=NEEDS_ROOT)])
def test_a_push_gets_to_its_folder_through_links_of_the_user_alone(
    pushed: tuple[Mirror, Path, Path], owner: str
) -> None:
    pusher, bucket, mine = pushed
    bucket.rmdir()
    bucket.symlink_to(mine)
    if owner == "mine":
        pusher.begin()
        assert pusher.push() == 5
        return
    os.lchown(bucket, 65534, 65534)
    with pytest.raises(UserError, match="is a link"):
        pusher.begin()
    assert os.listdir(mine) == ["keep"]


def test_a_push_deletes_and_sends_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in a manifest that another has changed; links in the folder."""
    monkeypatch.setenv("ASYNCRL_CACHE", str(tmp_path / "cache"))
    (mine := tmp_path / "bucket/mine").parent.mkdir()
    mine.write_text("mine")
    url = f"file://{tmp_path}/bucket/run"
    folder = mirror.local_copy(url)
    (folder / "journal").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("model: x\n")
    (folder / "key").symlink_to(mine)
    (folder / "keys").symlink_to(mine.parent)
    pushing = Mirror(url, folder)
    pushing.begin()
    assert pushing.push() == 1
    path = tmp_path / "bucket/run/MANIFEST.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {"../mine": 4}}))
    with pytest.raises((UserError, RunFailed), match="nothing is fetched or deleted"):
        pushing.push()
    assert mine.read_text() == "mine"
