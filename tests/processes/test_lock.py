"""The lock with real processes: a second one is told who holds it, and kill -9 frees it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncrl.errors import UserError
from asyncrl.processes.lock import RunLock

HOLDER = """
import sys
from pathlib import Path
from asyncrl.processes.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
print("released", flush=True)
sys.stdin.close()
sys.stdout.close()
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def take(run_dir: Path) -> None:
    with RunLock(run_dir):
        pass


def test_a_second_process_is_told_in_one_sentence_who_holds_the_run(holder, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        take(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"process {holder.pid} works on {tmp_path} already; ")
    assert text.endswith(f"stop it with `kill {holder.pid}`")
    assert "\n" not in text
    # Asking has not freed it.
    with pytest.raises(UserError):
        take(tmp_path)


def test_the_lock_of_a_process_that_was_killed_is_free(holder, tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    assert str(holder.pid) in (tmp_path / ".lock").read_text()
    with RunLock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} ")


def test_the_lock_is_free_when_the_context_ends(holder, tmp_path: Path) -> None:
    holder.stdin.close()
    assert holder.stdout.readline() == "released\n"
    take(tmp_path)
    take(tmp_path)


def test_an_error_inside_frees_it_and_passes(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    take(tmp_path)


def test_one_process_cannot_take_it_twice(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} "):
        take(tmp_path)


def test_programs_that_the_holder_starts_do_not_hold_it(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        child = subprocess.Popen(["sleep", "1000"], close_fds=False)
    try:
        take(tmp_path)
    finally:
        child.kill()
        child.wait()


def test_a_longer_pid_of_the_holder_before_leaves_no_digits_behind(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("9" * 100)
    with RunLock(tmp_path):
        assert "99999999" not in (tmp_path / ".lock").read_text()


def test_a_folder_that_is_not_there_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write to"):
        take(tmp_path / "nowhere")


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch, caplog) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), RunLock(tmp_path):
        assert "without locks" in caplog.text


def test_another_error_of_the_lock_passes_as_it_is(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="broken disk"):
        take(tmp_path)


def test_a_holder_on_another_host_is_named_with_its_host(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / ".lock").write_text("77 elsewhere\n")
        with pytest.raises(UserError, match=r"process 77 on elsewhere works on .*`kill 77` on elsewhere"):
            take(tmp_path)
