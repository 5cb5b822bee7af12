"""Joining or starting Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants

from asyncrl.cluster import ray_token
from asyncrl.errors import RunFailed, UserError
from asyncrl.processes.orphans import RUN, ProcessId, begin_run, end, family, lives
from asyncrl.recipe.schema import Recipe
from asyncrl.storage import private

logger = logging.getLogger(__name__)

_CONNECT_DEADLINE_S = 10.0
_WATCH_S = 2.0
_END_S = 10.0
_VITAL = ("raylet", "gcs_server")
"""Processes of a Ray without which it takes no more work."""
_LOOPBACK = "127.0.0.1"
_LOCAL = {"address": "local", "include_dashboard": False, "_node_ip_address": _LOOPBACK}
_LONGEST_PLACE = 24
"""Characters that leave room for Ray's sockets below: the name of one has 107 at most."""
_ours: list[ProcessId] = []
"""The Ray that `start` started, if it did: other processes below this one are not the run's."""
_node = ""
"""The driver's, by Ray's id."""
_MAY_START_AGAIN = ("Failed to start GCS", "timed out during startup")
"""Ray takes a port that is free when it looks, and another program may have it by the time it starts; and it gives its
processes thirty seconds, which a busy machine may not have."""
_folder: Path | None = None
"""Where that one has its files."""


def start(recipe: Recipe) -> None:
    """Connect to `ray_address` or RAY_ADDRESS, else start Ray on this machine. UserError if it cannot be reached,
    RunFailed if it does not come up; nothing of it is left then but its logs."""
    if ray.is_initialized():
        raise UserError(
            "Ray is running in this process already (ray.init); call ray.shutdown() first, and name a cluster that the "
            "run is to use in ray_address"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's own choice for its workers is 15, with which any other busy program starves a run.
    os.environ.setdefault("RAY_worker_niceness", str(os.getpriority(os.PRIO_PROCESS, 0)))
    address = recipe.ray_address or os.environ.get("RAY_ADDRESS")
    # Workers of a Ray that is there already do not have this process's environment.
    its = {"address": address, "runtime_env": {"env_vars": begin_run()}}
    options: dict[str, Any] = its if address else _LOCAL
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address:
        _check_answers(address)
    try:
        _init(options, address)
    except (UserError, RunFailed) as error:
        if address or not any(said in str(error) for said in _MAY_START_AGAIN):
            raise
        logger.warning("%s; it is started once more", error)
        _init(options, address)


def _init(options: dict[str, Any], address: str | None) -> None:
    """Once."""
    before = family(os.getpid())
    try:
        # What Ray has to say of a dead worker, the driver says in its own words.
        ray._private.worker.listen_error_messages = lambda *_: None
        if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:  # whoever set that knows what to do
            ray._private.utils.set_sigterm_handler = lambda *_: None
        with nullcontext({}) if address else _reachable_from_here_only() as more:
            ray.init(**options, **more, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        _end_started(before)
        where = f"the cluster at {address}" if address else f"Ray in {tempfile.gettempdir()}"
        raise UserError(f"ray_address: cannot start or reach {where}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # Ray has no class of its own for it
        _end_started(before, keep_logs=True)
        why = " ".join(str(error).split()).rstrip(".")
        raise RunFailed(
            f"Ray did not start: {why}; see its logs, and what this machine has left (`asyncrl doctor`), then try again"
        ) from error
    except BaseException:
        _end_started(before)
        raise
    global _node
    _ours[:] = [] if address else [process for process in family(os.getpid()) if process not in before]
    _node = ray.get_runtime_context().get_node_id()


def _end_started(before: list[ProcessId], *, keep_logs: bool = False) -> None:
    """All of a Ray that did not come up; it would else end with this process, and write to its folder until then."""
    end([process for process in family(os.getpid()) if process not in before], _END_S)
    _forget_folder(keep=keep_logs)


@contextmanager
def _reachable_from_here_only() -> Iterator[dict[str, Any]]:
    """Ray's ports and those of its workers on loopback, its files where no other user gets to; yields what else
    ray.init is to be told. Ray itself asks who connects for a token, which it makes where there is none."""
    global _folder
    ray_token.keep_private()
    place = tempfile.gettempdir()
    if len(place) > _LONGEST_PLACE:
        logger.warning("TMPDIR is too long for the names of Ray's sockets: its files are in /tmp")
        place = "/tmp"
    _folder = private.make(Path(place))
    # Ray gives its own folder to everyone, so it is a child of ours. Its workers have this environment.
    loopback = next(name for name, at in psutil.net_if_addrs().items() if any(a.address == _LOOPBACK for a in at))
    settings = {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "VLLM_HOST_IP": _LOOPBACK,
        "VLLM_RPC_BASE_PATH": str(_folder),
        private.WITHIN: str(_folder),
    }
    before_settings = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    # ray.init puts the address of this machine in the place of 127.0.0.1, unless clusters are said to be unsupported.
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield {"_temp_dir": str(_folder / "ray")}
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name, value in before_settings.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        ray_token.keep_private()


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes. UserError unless something listens at HOST:PORT; `auto` is Ray's to resolve."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        raise UserError(f"ray_address '{address}' is not of the form HOST:6379, as `ray start --head` prints it")
    try:
        socket.create_connection((host, int(port)), _CONNECT_DEADLINE_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"ray_address: nothing answers at {address}: {getattr(error, 'strerror', None) or error}; name the address "
            "that `ray start --head` printed, or leave it out to run on this machine"
        ) from error


def own_processes() -> dict[str, Any]:
    """The Ray that this process has started, if it has: whoever resumes the run ends what a kill -9 leaves of it."""
    me = {"pid": os.getpid(), "host": socket.gethostname(), "run": os.environ.get(RUN, ""), "node": None}
    return {**me, "processes": list(_ours)}


class ClusterDied(RunFailed):
    """There is no Ray any more to run on."""


def death() -> str | None:
    """Why this Ray takes no more work; None if it does."""
    vital = [process for process in _ours if process.name in _VITAL]
    if vital:
        gone = [process.name for process in vital if not lives(process)]
        return f"Ray on this machine has died (its {gone[0]} is gone)" if gone else None
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    if not alive:
        return "no node of the Ray cluster is alive"
    # Asking Ray which it is would start another one where the run has just left this.
    return None if _node in alive else "the Ray node of the driver has died"


@asynccontextmanager
async def watched(resume: str) -> AsyncIterator[None]:
    """Ends the block with ClusterDied, whatever it waits for: nobody would answer, nor be replaced.

    `resume`: how to go on.
    """
    main, said = asyncio.current_task(), []

    async def watch() -> None:
        while not said:
            await asyncio.sleep(_WATCH_S)
            # Where no one can be asked any more, Ray itself ends this process.
            with suppress(Exception):
                if why := await asyncio.to_thread(death):
                    said.append(why)
                    assert main is not None
                    main.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not said:
            raise
        raise ClusterDied(f"{said[0]}, and with it all actors of the run; `{resume}` goes on") from None
    finally:
        watching.cancel()


def num_nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def base_dir_of_actors(base_dir: Path) -> Path:
    """Where actors look up relative paths. In a submitted job every node has a copy of the files, which is the current
    directory of its actors, and may lie elsewhere than the driver's."""
    return Path() if ray.get_runtime_context().runtime_env.get("working_dir") else base_dir


def stop(*, keep_logs: bool = False) -> None:
    """Leave the cluster; actors of this run end with it. `keep_logs`: Ray's own, if it was started here."""
    ray.shutdown()
    _forget_folder(keep=keep_logs)


def _forget_folder(*, keep: bool = False) -> None:
    global _folder
    if _folder is not None and keep:
        logger.warning("Ray's logs are in %s until your next run begins", _folder / "ray/session_latest/logs")
    elif _folder is not None:
        private.remove(_folder)
    _folder = None
