"""Why an actor is gone, from Ray's page and the end of its process's log."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from asyncrl.processes.deaths import reason

PAGE = """The actor died unexpectedly before finishing this task.
\tclass_name: TrainerActor
\tactor_id: 1e5cb5a9b8bcd5b9a1ff6c4301000000
\tpid: 4711
\tnamespace: 6f2a
\tip: 127.0.0.1
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed \
by the OOM killer due to high memory usage, (2) ray stop --force is called, or (3) the worker is crashed."""


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(ray._private.worker, "_global_node", SimpleNamespace(get_logs_dir_path=lambda: str(tmp_path)))
    return tmp_path


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (None, "its process has died"),  # on another machine
        ("ValueError: that was handled\n", "its process was killed, for memory as a rule"),
        ("*** SIGSEGV received at time=1 ***\n", "its process has died, with SIGSEGV received at time=1"),
        ("Fatal Python error: Aborted\n\nThread 0x7\n", "its process has died, with Fatal Python error: Aborted"),
        ("terminate called after\n  what():  std::bad_alloc\n", "its process has died, with what(): std::bad_alloc"),
    ],
)  # fmt: skip
def test_a_process_that_ends_by_itself_says_how(logs: Path, log: str | None, said: str) -> None:
    if log is not None:
        (logs / "worker-ab-01000000-4711.err").write_text(log)
        (logs / "worker-ab-01000000-4712.err").write_text("Fatal Python error: of another\n")
    assert reason(RuntimeError(PAGE)) == said


def test_an_exception_says_itself() -> None:
    page = "The actor died because of an error raised in its creation task, ray::Generator.__init__()\nValueError: no"
    assert reason(RuntimeError(page)) == "ValueError: no"
    assert reason(RuntimeError()) == "RuntimeError"
    page = "ray::Generator.start() (pid=1)\nasyncrl.rollout.engine.EngineDead: the engine process died"
    assert reason(RuntimeError(page)) == "the engine process died"


def test_ray_that_ended_it_for_memory_is_said() -> None:
    page = "Task was killed due to the node running low on memory.\nTo disable worker killing, set `RAY_memory_x` to 0."
    assert reason(RuntimeError(page)) == "its node ran low on memory, and Ray ended it; ask for less there"
