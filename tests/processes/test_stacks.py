"""Stacks of real processes: one that holds the GIL for ever, one that is stuck in C, one that never asked for it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncrl.processes import stacks
from asyncrl.processes.stacks import collect, request, tidy

CHILD = """
import os, re, sys, threading, time
from pathlib import Path
from asyncrl.processes.stacks import record

def hold_the_gil():
    print("ready", flush=True)
    re.match("(a+)+$", "a" * 60 + "b")

def stuck_in_c():
    print("ready", flush=True)
    os.read(os.pipe()[0], 1)

def wait_for_the_end():
    print("ready", flush=True)
    sys.stdin.read()

def a_second_thread():
    threading.Thread(target=wait_for_the_end, daemon=True).start()
    os.read(os.pipe()[0], 1)

if sys.argv[1] != "no record":
    record(Path(sys.argv[2]), sys.argv[1])
globals()[sys.argv[3]]()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def make(doing: str, role: str = "trainer") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, role, str(tmp_path / "stacks"), doing],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield make
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.fixture
def on_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray: what Ray does is tested in test_nodes."""

    async def call_on(node_id: str, function: Callable[..., Any], *arguments: Any, deadline_s: float) -> Any:
        return function(*arguments)

    monkeypatch.setattr(stacks, "call_on", call_on)


def gather(folder: Path, pid: int, role: str = "trainer", deadline_s: float = 20.0) -> Path | None:
    return asyncio.run(asyncio.wait_for(collect(folder, role, pid, "node", deadline_s), 60))


@pytest.mark.parametrize("doing", ["hold_the_gil", "stuck_in_c", "wait_for_the_end"])
@pytest.mark.usefixtures("on_this_node")
def test_the_stack_of_a_process_that_answers_nobody(start, tmp_path: Path, doing: str) -> None:
    process = start(doing)
    path = gather(tmp_path / "stacks", process.pid)
    assert path == tmp_path / "stacks" / f"trainer-{process.pid}.txt"
    assert f" in {doing}" in path.read_text()
    # It has survived it, and can be asked again: the new stack is appended.
    assert gather(tmp_path / "stacks", process.pid) == path
    assert path.read_text().count(f" in {doing}") == 2
    assert process.poll() is None


@pytest.mark.usefixtures("on_this_node")
def test_the_stacks_of_all_threads(start, tmp_path: Path) -> None:
    process = start("a_second_thread")
    text = gather(tmp_path / "stacks", process.pid).read_text()
    assert " in wait_for_the_end" in text
    assert " in a_second_thread" in text


@pytest.mark.usefixtures("on_this_node")
def test_a_process_that_does_not_record_is_not_killed_by_the_question(start, tmp_path: Path) -> None:
    process = start("wait_for_the_end", role="no record")
    assert not request(process.pid)
    assert gather(tmp_path / "stacks", process.pid) is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)


@pytest.mark.usefixtures("on_this_node")
def test_a_process_that_is_gone_has_no_stack(start, tmp_path: Path) -> None:
    process = start("wait_for_the_end")
    process.kill()
    # A zombie first, then nobody.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert gather(tmp_path / "stacks", process.pid) is None
    process.wait()
    assert not request(process.pid)
    assert gather(tmp_path / "stacks", process.pid) is None


@pytest.mark.usefixtures("on_this_node")
def test_a_stopped_process_costs_the_deadline_and_no_more(start, tmp_path: Path) -> None:
    process = start("wait_for_the_end")
    process.send_signal(signal.SIGSTOP)
    assert gather(tmp_path / "stacks", process.pid, deadline_s=0.3) is None


@pytest.mark.parametrize("error", [TimeoutError(), stacks.RayError("node died")])
def test_a_node_that_does_not_answer_is_no_error(error, tmp_path: Path, monkeypatch, caplog) -> None:
    async def call_on(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(stacks, "call_on", call_on)
    assert gather(tmp_path, 1) is None
    assert "the node of trainer does not answer" in caplog.text


@pytest.mark.usefixtures("on_this_node")
def test_half_a_stack_is_not_returned_as_one(tmp_path: Path, monkeypatch) -> None:
    """The process here is this one; its stack comes in four pieces, each within a poll or so of the one before."""
    path = tmp_path / "trainer-1.txt"
    path.write_text("before\n")
    monkeypatch.setattr(stacks, "_POLL_S", 0.5)

    def write(pieces: int) -> None:
        with path.open("a") as file:
            file.write("piece\n")
        if pieces > 1:
            threading.Timer(0.2, write, [pieces - 1]).start()

    monkeypatch.setattr(stacks, "request", lambda pid: threading.Timer(0.3, write, [4]).start() or True)
    assert gather(tmp_path, 1) == path
    assert path.read_text().count("piece") == 4


# -- files that stay and files that go


@pytest.mark.usefixtures("on_this_node")
def test_an_empty_file_goes_with_its_process_and_a_stack_stays(start, tmp_path: Path) -> None:
    folder = tmp_path / "stacks"
    quiet, asked = start("wait_for_the_end", role="a"), start("wait_for_the_end", role="b")
    assert {p.name for p in folder.iterdir()} == {f"a-{quiet.pid}.txt", f"b-{asked.pid}.txt"}
    path = gather(folder, asked.pid, role="b")
    for process in (quiet, asked):
        process.stdin.close()
        assert process.wait(20) == 0
    assert list(folder.iterdir()) == [path]


def test_what_a_killed_process_left_empty_goes_with_its_successor_or_at_the_end(start, tmp_path: Path) -> None:
    folder = tmp_path / "stacks"
    for role in ("a", "a-1"):
        process = start("wait_for_the_end", role=role)
        process.kill()
        process.wait()
    successor = start("wait_for_the_end", role="a")
    assert {p.name for p in folder.iterdir()} == {f"a-{successor.pid}.txt", f"a-1-{process.pid}.txt"}
    successor.kill()
    successor.wait()
    tidy(folder)
    assert not folder.exists()


def test_tidy_keeps_stacks(tmp_path: Path) -> None:
    (tmp_path / "a-1.txt").write_text("stack")
    (tmp_path / "a-2.txt").touch()
    tidy(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a-1.txt"]
    tidy(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_made_does_not_stop_the_actor(start, tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("a file is in the way")
    assert start("wait_for_the_end").poll() is None
