"""The command line in a process of its own, forked from one that has imported what a run imports.

The imports take 5 s of CPU time, and ending an interpreter that has them one more: of a whole run with the simulated
engine that is a third. The command is no other: its own session, environment, signals, exit code. What reads its
environment while it is imported takes `fresh`.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from asyncrl.cli.quiet import SILENCE

ROOT = Path(__file__).resolve().parents[2]
_TOKEN = os.environ["RAY_AUTH_TOKEN"]
"""That tests/conftest.py has set for all runs."""
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["asyncrl.orchestrator.run", "asyncrl.orchestrator.replay", "transformers.models.llama"])


def fresh(*arguments: str) -> subprocess.Popen[str]:
    """Not forked: `python -m asyncrl` in a session of its own."""
    command, environment = [sys.executable, "-m", "asyncrl", *arguments], {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)


class Forked:
    """As much of subprocess.Popen as whole runs need. What it prints goes to `log`, or is what `communicate` gives."""

    def __init__(self, *arguments: str, log: Path | None = None) -> None:
        self._scratch = None if log else tempfile.NamedTemporaryFile()  # noqa: SIM115
        self._output = log or Path(self._scratch.name)
        self._output.touch()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        # The one who forks: quiet from the start, as the command line makes itself before it imports anything.
        # Ray keeps the token that it finds when it is imported, and a test may have taken it away for itself.
        always = {**SILENCE, "PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": _TOKEN}
        with mock.patch.dict(os.environ, always):
            forkserver.ensure_running()
        self._process = _FORKS.Process(target=_run, args=(arguments, environment, self._output))
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("asyncrl", timeout)
        return self.returncode

    def communicate(self, timeout: float = 10.0) -> tuple[str, None]:
        self.wait(timeout)
        return self._output.read_text(), None

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _run(arguments: tuple[str, ...], environment: Mapping[str, str], output: Path) -> None:
    """In the new process: what `python -m asyncrl` is, from its session to what is done at its end."""
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    with output.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.argv = ["asyncrl", *arguments]
    from asyncrl.cli import main

    try:
        sys.exit(main(arguments))
    finally:
        atexit._run_exitfuncs()
