"""Processes that outlived their owner: found by pid and start time, so that a recycled pid is never killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

from asyncrl.processes.nodes import call_on
from asyncrl.storage.run_dir import read, replace

logger = logging.getLogger(__name__)

RUN = "ASYNCRL_RUN"
"""Environment variable of the processes of a run, a secret from other users: who names it proves that they are the
run's, which a pid and a start time in a file do not."""
STRAYS = "what its code had started"
"""In the place of a role."""
_POLL_S = 0.02
# psutil adds the time of boot, which the kernel rounds to seconds. A pid comes back far later than that.
_SAME_START_S = 2.0


@dataclass(frozen=True)
class ProcessId:
    """One process of one host, for good. `create_time`: seconds since the epoch."""

    pid: int
    create_time: float
    name: str


def begin_run() -> dict[str, str]:
    """What the environment of a run's processes says, from now on that of this one and of what it starts."""
    # Process titles are written over the environment where the kernel shows it, but with the latter.
    said = {RUN: secrets.token_hex(16), "SPT_NOENV": "1"}
    os.environ.update(said)
    return said


def identify(pid: int) -> ProcessId:
    """Raises psutil.NoSuchProcess."""
    process = psutil.Process(pid)
    return ProcessId(pid, process.create_time(), process.name())


def family(pid: int) -> list[ProcessId]:
    """All descendants of a process, none if it is gone."""
    found = []
    try:
        for child in psutil.Process(pid).children(recursive=True):
            try:
                found.append(identify(child.pid))
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return []
    return found


def end(processes: Iterable[ProcessId], deadline_s: float) -> list[ProcessId]:
    """kill -9 those that still live, in this order, and wait until they are gone; returns them.

    A zombie counts as gone: it holds nothing. What is not this user's, or does not go in time, is logged.
    """
    killed = []
    for known in dict.fromkeys(processes):
        try:
            if (process := _living(known)) is not None and known.pid != os.getpid():
                process.kill()
                killed.append(known)
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied:
            logger.warning("process %d (%s) is another user's; end it by hand", known.pid, known.name)
    until = time.monotonic() + deadline_s
    while (left := [known for known in killed if _living(known)]) and time.monotonic() < until:
        time.sleep(_POLL_S)
    for known in left:
        logger.warning("process %d (%s) is still there %g s after kill -9", known.pid, known.name, deadline_s)
    return [known for known in killed if known not in left]


async def end_on_node(node_id: str, processes: list[ProcessId], deadline_s: float) -> list[ProcessId]:
    """`end`, on the Ray node where the processes were; nothing, and a warning, if that node does not answer."""
    try:
        # Over there they get half of the time, so that the answer still comes in time.
        return await call_on(node_id, end, processes, deadline_s / 2, deadline_s=deadline_s)
    except (RayError, TimeoutError) as error:
        logger.warning("no process on node %s was ended: it does not answer (%s)", node_id, type(error).__name__)
        return []


def here() -> dict[str, Any]:
    """In an actor: its process, then all below it, and the host and Ray node they are on."""
    pid = os.getpid()
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "run": os.environ.get(RUN, ""),
        "node": ray.get_runtime_context().get_node_id(),
        "processes": [identify(pid), *family(pid)],
    }


class ProcessTable:
    """Who works for the run, by role, as `here` said; also in RUN_DIR/processes.json, for whoever resumes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._roles: dict[str, dict[str, Any]] = {}

    def __getitem__(self, role: str) -> dict[str, Any]:
        return self._roles[role]

    def get(self, role: str) -> dict[str, Any] | None:
        return self._roles.get(role)

    def put(self, role: str, started: dict[str, Any]) -> None:
        """The role is played by these processes from now on."""
        self._roles[role] = started
        self._write()

    def pop(self, role: str) -> dict[str, Any] | None:
        """The role is played by nobody; returns who did."""
        found = self._roles.pop(role, None)
        self._write()
        return found

    def _write(self) -> None:
        roles = {
            role: {
                "host": started["host"],
                "proof": _proof(started["run"], self._path.parent),
                "processes": [asdict(p) for p in started["processes"]],
            }
            for role, started in self._roles.items()
        }
        replace(self._path, json.dumps(roles, indent=1) + "\n")


def end_leftovers(path: Path, deadline_s: float) -> list[str]:
    """End what a table names, if it is of this host, still lives and is the run's, what that has started since, and
    whatever else has the run's secret: programs whose parents were killed all at once.

    Returns the roles that had something. A table that cannot be read is a warning, as is a process of another run.
    """
    if (text := read(path.parent, path.name)) is None:
        return []
    try:
        table = json.loads(text)
        # Each role's own host: pids of another one would name strangers here.
        hosts = {role: entry["host"] for role, entry in table.items()}
        known = {role: [ProcessId(**process) for process in entry["processes"]] for role, entry in table.items()}
        proofs = {role: str(entry["proof"]) for role, entry in table.items()}
    except (RecursionError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s cannot be read (%s); see that no process of the run is left", path, type(error).__name__)
        return []
    here = [role for role in known if hosts[role] == socket.gethostname()]
    members = {role: _with_families([p for p in known[role] if _is_of(proofs[role], p, path)]) for role in here}
    ended = set(end([process for group in members.values() for process in group], deadline_s))
    strays = end(_with_secret({proofs[role] for role in here}, path), deadline_s)
    return [*(role for role, group in members.items() if ended.intersection(group)), *(strays and [STRAYS])]


def _proof(run: str, run_dir: Path) -> str:
    """That a table is of a run. It tells no one the secret, and is of no use in another directory."""
    status = run_dir.stat()
    return hashlib.sha256(f"{run} {status.st_dev} {status.st_ino}".encode()).hexdigest()


def _is_of(proof: str, known: ProcessId, path: Path) -> bool:
    """Whether a living process was started for the run: its environment says so."""
    if (process := _living(known)) is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        if (run := process.environ().get(RUN)) and _proof(run, path.parent) == proof:
            return True
    logger.warning("process %d (%s), which %s names, is not of this run; it is left alone", known.pid, known.name, path)
    return False


def _with_secret(proofs: Set[str], path: Path) -> list[ProcessId]:
    """All processes that have the secret of one of these in their environment, as far as this user may look."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if (run := process.environ().get(RUN)) and _proof(run, path.parent) in proofs:
                found.append(identify(process.pid))
    return found


def lives(known: ProcessId) -> bool:
    return _living(known) is not None


def _with_families(processes: list[ProcessId]) -> list[ProcessId]:
    """Those that live, in their order, then what they have started."""
    living = [process for process in processes if _living(process)]
    return list(dict.fromkeys([*living, *(child for process in living for child in family(process.pid))]))


def _living(known: ProcessId) -> psutil.Process | None:
    try:
        process = psutil.Process(known.pid)
        same = abs(process.create_time() - known.create_time) < _SAME_START_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
