"""Tasksets of the package `verifiers` (0.4): their tasks as rows, their rollouts as episodes.

    env: verifiers:NAME --task--> verifiers_program.py --tokens or chats--> the episode's endpoint (gateway.py)
                        <--reward, metrics--
The package pins libraries at other versions than vLLM and asyncrl do, so it is imported by a Python of its own
(`data.options.python`), which asks by HTTP. One such program for each process of environments, for all of its episodes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asyncrl.envs.environment import ContextFull
from asyncrl.envs.gateway import session_name, shared_url
from asyncrl.errors import UserError
from asyncrl.task import VERIFIERS, Task

_PROGRAM = Path(__file__).with_name("verifiers_program.py")
_KEY = "ASYNCRL_API_KEY"
_TASKS_S = 1800.0
"""For all tasks of a taskset, which may have to download them."""
_START_S = 300.0
_END_S = 2.0
_MOST_BYTES = 2**26
"""Of what the program says of one episode."""


def load_tasks(name: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each task: its prompt, its data, and what plays it. Raises UserError."""
    settings = dict(options)
    python, size = _python(settings.pop("python", sys.executable)), settings.pop("size", None)
    if size is not None and (type(size) is not int or size < 1):
        raise UserError(f"data.options.size is {size!r}; it is a number of tasks, 1 or more")
    played = {"python": python, "path": [os.getcwd()], "taskset": {**settings, "id": name}}
    asked = json.dumps({**played, "size": size}) + "\n"
    try:
        done = subprocess.run(_command(python, "tasks"), input=asked, capture_output=True, text=True, timeout=_TASKS_S)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"data.path: {VERIFIERS}{name} gave not all of its tasks in {_TASKS_S:g} s") from error
    said = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = said[-1].get("error") if said else done.returncode and done.stderr.strip().rpartition("\n")[2]
    if wrong:
        raise UserError(
            f"data.path: {VERIFIERS}{name} cannot be loaded by {python}: {' '.join(wrong.split())}{_cure(wrong)}"
        )
    return [{**task, "verifiers": played} for task in said]


def _cure(wrong: str) -> str:
    if "No module named 'verifiers" not in wrong:
        return ""
    return (
        "; make a virtual environment with `pip install verifiers==0.4.*` and the taskset, and set data.options.python "
        "to its Python"
    )


def _python(given: str) -> str:
    found = shutil.which(given)
    if found is None:
        raise UserError(f"data.options.python: there is no program {given}")
    return os.path.abspath(found)  # a link to another Python is not followed: it is the virtual environment


def _command(python: str, what: str) -> list[str]:
    # -P: modules of this folder are not for its imports.
    return [python, "-P", str(_PROGRAM), what]


class Rollouts:
    """The environment `verifiers:NAME`. `settings`: those of verifiers' environment but for the taskset's: its agents,
    with their harness and runtime."""

    def __init__(self, name: str, renderer: dict[str, Any] | None = None, **settings: Any) -> None:
        """renderer: of the package `renderers`, which then makes tokens of the messages, in place of the model's chat
        template. Raises UserError."""
        if "taskset" in settings:
            raise UserError("env.kwargs.taskset: settings of a taskset are data.options; put them there")
        self._name, self._renderer, self._settings = name, renderer, settings
        self._starting: asyncio.Task[_Program] | None = None

    async def rollout(self, task: Task, policy: Any) -> dict[str, float]:
        """Raises UserError if the taskset fails."""
        played = task.row.get("verifiers")
        if not isinstance(played, dict) or played["taskset"]["id"] != self._name:
            raise UserError(
                f"env {VERIFIERS}{self._name} plays the tasks of data.path={VERIFIERS}{self._name}, and no others"
            )
        address, key = policy.base_url, policy.api_key
        if self._starting is None or (self._starting.done() and not _runs(self._starting)):
            asked = {
                "env": {**self._settings, "taskset": played["taskset"]},
                "path": played["path"],
                "base_url": shared_url(address),
                "renderer": self._renderer,
                "tokenizer": policy.tokenizer.name_or_path,
            }
            self._starting = asyncio.create_task(_Program.started(played["python"], asked, key))
        program = await asyncio.shield(self._starting)
        ended = await program.run(task.row["task"], session_name(address))
        full = policy.session.full
        if wrong := ended.get("error"):
            raise ContextFull(full) if full else UserError(f"{VERIFIERS}{self._name}: {' '.join(wrong.split())}")
        if full or ended["truncated"]:
            policy.truncate()
        return {**ended["metrics"], "reward": ended["reward"]}


def _runs(starting: asyncio.Task[_Program]) -> bool:
    return not starting.cancelled() and starting.exception() is None and starting.result().ended is None


class _Program:
    """One that plays rollouts. It ends when this process does, as its input does."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count()
        self.ended: str | None = None
        """Of what it died."""

    @classmethod
    async def started(cls, python: str, asked: dict[str, Any], key: str) -> _Program:
        """Raises UserError."""
        process = await asyncio.create_subprocess_exec(
            *_command(python, "rollouts"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, _KEY: key},
            limit=_MOST_BYTES,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        try:
            async with asyncio.timeout(_START_S):
                line = await process.stdout.readline()
        except TimeoutError:
            await _exit_code(process)
            raise UserError(f"verifiers did not start within {_START_S:g} s") from None
        first = json.loads(line) if line else {"error": "it ended; RUN_DIR/environments.log says why"}
        if "error" in first:
            await _exit_code(process)
            raise UserError(f"verifiers cannot start by {python}: {' '.join(first['error'].split())}")
        program = cls(process)
        program._listening = asyncio.create_task(program._listen(process.stdout))
        return program

    async def run(self, task: dict[str, Any], model: str) -> dict[str, Any]:
        """Plays a task, whose model calls name `model`. Raises UserError if the program ends."""
        if self.ended is not None:
            raise UserError(self.ended)
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._say({"run": number, "model": model, "task": task})
        try:
            return await future
        except asyncio.CancelledError:
            self._say({"cancel": number})
            raise
        finally:
            del self._waiting[number]

    def _say(self, message: dict[str, Any]) -> None:
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _listen(self, said: asyncio.StreamReader) -> None:
        try:
            while line := await said.readline():
                message = json.loads(line)
                if (future := self._waiting.get(message.get("run"))) and not future.done():
                    future.set_result(message)
        finally:
            self.ended = f"verifiers' process ended (exit code {await _exit_code(self._process)})"
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(UserError(self.ended))


async def _exit_code(process: asyncio.subprocess.Process) -> int:
    """Of one that says nothing any more; one that has not ended is killed."""
    try:
        async with asyncio.timeout(_END_S):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()
