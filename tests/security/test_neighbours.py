"""Other users of the machine: what they may enter, and what of theirs is entered. Where the suite is root, they are
there: children as another user."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asyncrl.cluster import ray_cluster
from asyncrl.errors import RunFailed
from asyncrl.storage import private
from asyncrl.weights.files import create_file, open_own
from asyncrl.weights.transports import disk, shared_memory

NOBODY = 65534
HOLD = """
import sys
from pathlib import Path
from asyncrl.storage import private
print(private.make(Path(sys.argv[1])), flush=True)
input()
"""
WARNED = """
import os, tempfile
from pathlib import Path
from asyncrl.observe import relay
relay.relay()
print(os.environ["ASYNCRL_NOTICES"], flush=True)
input()
assert relay.take() == [relay.Notice(30, "vllm: from below")]
"""
WARNS = """
import logging
from asyncrl.observe import relay
relay.relay_to_parent()
logging.getLogger("vllm").warning("from below")
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user too")


@pytest.fixture
def everyones(tmp_path: Path) -> Path:
    """As /tmp is, and reached by other users."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path(tempfile.gettempdir()) and folder.is_relative_to(tempfile.gettempdir()):
            folder.chmod(0o755)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    return shared


def as_nobody(do: Callable[[], object]) -> str:
    """Name of the error that it ends in, for another user."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        said = ""
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            do()
        except BaseException as error:
            said = type(error).__name__
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        return answer.read()


def holder(parent: Path, code: str = HOLD) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(parent), private.WITHIN: ""},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_has_no_name_to_be_guessed_and_is_its_makers_alone(tmp_path: Path) -> None:
    first, second = private.make(tmp_path), private.make(tmp_path)
    assert first != second
    assert re.fullmatch(r"asyncrl\.\w{8}", first.name)
    assert {folder.stat().st_mode & 0o7777 for folder in (first, second)} == {0o700}
    private.remove(first)
    assert os.listdir(tmp_path) == [second.name]
    private.remove(second)


def test_what_the_dead_have_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    alive, kept = holder(tmp_path)
    killed, left = holder(tmp_path)
    (left / "weights").touch()
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "asyncrl.the_link").symlink_to(target)
    others = ("asyncrl-submit-x", "asyncrl.egg-info", "asyncrl.my_store")
    for name in others:
        (tmp_path / name).mkdir()
    killed.kill()
    killed.wait(30)
    mine = private.make(tmp_path)
    names = {kept.name, mine.name, "target", "asyncrl.the_link", *others}
    assert set(os.listdir(tmp_path)) == names
    alive.communicate("\n", timeout=30)


@needs_root
def test_another_user_enters_nothing_and_loses_nothing(everyones: Path) -> None:
    theirs = everyones / "asyncrl.nobodys_"
    assert as_nobody(lambda: theirs.mkdir(0o700)) == ""
    mine = private.make(everyones)
    assert theirs.is_dir()
    create_file(mine / "copy", 4, torch.float32)
    assert as_nobody(lambda: os.listdir(mine)) == "PermissionError"
    assert as_nobody((mine / "copy").read_bytes) == "PermissionError"
    private.remove(mine)


@needs_root
def test_another_user_gets_no_warnings_and_keeps_none(everyones: Path) -> None:
    """Nor do they wait for a pipe of another user's: there is no name that could be guessed."""
    process, notices = holder(everyones, WARNED)
    assert re.fullmatch(r"asyncrl\.\w{8}", notices.parent.name)
    for name in (notices, notices.with_name("notices.taken")):
        assert as_nobody(lambda name=name: os.mkfifo(name)) == "PermissionError"  # type: ignore[misc]
        assert as_nobody(lambda name=name: name.symlink_to("/etc/passwd")) == "PermissionError"  # type: ignore[misc]
    environment = {**os.environ, "ASYNCRL_NOTICES": str(notices)}
    subprocess.run([sys.executable, "-c", WARNS], env=environment, check=True, timeout=30)
    assert as_nobody(notices.read_bytes) == "PermissionError"
    process.communicate("\n", timeout=30)
    assert process.returncode == 0
    assert os.listdir(everyones) == []


def test_warnings_that_nobody_has_taken_go_with_the_next_run(tmp_path: Path) -> None:
    killed, notices = holder(tmp_path, WARNED)
    notices.write_text("")
    killed.kill()
    killed.communicate(timeout=30)
    private.remove(private.make(tmp_path))
    assert os.listdir(tmp_path) == []


def test_weights_in_files_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create_file(tmp_path / "copy", 4, torch.float32)
        pushed = disk.write(torch.zeros(4), tmp_path / "weights", 1, 0)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "copy", pushed)} == {0o600}
    with pytest.raises(RunFailed, match="File exists"):
        create_file(tmp_path / "copy", 4, torch.float32)


def put_link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def give_away(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


FORGERIES: dict[str, Callable[[Path], object]] = {
    "readable": lambda path: path.chmod(0o644),
    "in an open folder": lambda path: path.parent.chmod(0o777),
    "a link": put_link,
    "a pipe": put_fifo,
}
OTHERS: dict[str, Callable[[Path], object]] = {
    "another's": give_away,
    "in another's folder": lambda path: give_away(path.parent),
}


@pytest.mark.parametrize("how", [*FORGERIES, *(pytest.param(how, marks=needs_root) for how in OTHERS)])
def test_weights_that_others_may_have_written_are_not_mapped(tmp_path: Path, how: str) -> None:
    folder = private.make(tmp_path)
    ours = create_file(folder / "copy", 4, torch.float32)
    ours.fill_(1.0)
    receiver = shared_memory.Receiver([], 1, 2, 1.0)
    [got] = receiver.receive([str(folder / "copy")], [4], torch.float32)
    assert torch.equal(got, ours)
    (FORGERIES | OTHERS)[how](folder / "copy")
    with pytest.raises((RunFailed, OSError)):
        open_own(folder / "copy", 4, torch.float32)
    private.remove(folder)


@pytest.mark.parametrize("place", ["/tmp", "/tmp/a-folder-whose-name-is-too-long-for-a-socket"])
def test_a_runs_own_ray_has_its_files_where_nobody_else_enters(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And what it starts binds loopback. Afterwards neither holds for others that this process starts."""
    monkeypatch.setattr(ray_cluster.tempfile, "gettempdir", lambda: place)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")
    with ray_cluster._reachable_from_here_only() as more:
        folder = Path(more["_temp_dir"]).parent
        assert folder.parent == Path("/tmp")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"] == "lo"
        assert private.of_process().parent == folder
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    assert os.environ["NCCL_SOCKET_IFNAME"] == "eth0"
    assert ("TMPDIR is too long" in caplog.text) == (place != "/tmp")
    ray_cluster._forget_folder(keep=True)
    assert str(folder) in caplog.text
    ray_cluster._forget_folder()
    private.remove(folder)
