"""Runs on a Ray cluster that is there already, through its Jobs API.

    here: recipe checked, files staged --HTTP--> head: job = `asyncrl train` --> driver and actors, as anywhere
Who waits: `follow`, for the log of the job; Ctrl-C leaves it and the job goes on. Unblocked by: its end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rich.console import Console

from asyncrl.cluster import bundle
from asyncrl.cluster.ray_token import has_token
from asyncrl.errors import RunFailed, UserError
from asyncrl.recipe.schema import Recipe
from asyncrl.terminal.escape import visible

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_CONNECT_DEADLINE_S = 10.0
_SUBMIT_DEADLINE_S = 60.0
_AGAIN_S = 2.0
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_ENTRYPOINT = f"python -m asyncrl train {bundle.RECIPE_FILE} --or-resume"
_MOST_RECONNECTS = 30


def submit(recipe: Recipe, name: str, base_dir: Path, address: str, detach: bool) -> int:
    """Start a job that trains a checked recipe, and follow it; returns its exit code (0 at once if `detach`)."""
    bundle.check_run_dir(recipe)
    shipped = bundle.shippable(base_dir)
    bundle.check_reachable(recipe, shipped)
    client = _client(address)
    # Two may be submitted in one second.
    job = f"{bundle.plain(name)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory(prefix="asyncrl-submit-") as folder:
        bundle.stage(recipe, base_dir, shipped, Path(folder))
        _send(client, job, folder, recipe)
    console = Console()
    lines = [f"job {job} runs at {address}, in {recipe.run_dir}", *_commands(job, address)]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return 0 if detach else _follow(client, job, address)


def _send(client: JobSubmissionClient, job: str, folder: str, recipe: Recipe) -> None:
    """Raises RunFailed if the cluster does not take the job; one that has just been started may need a moment."""
    ends, waited = time.monotonic() + _SUBMIT_DEADLINE_S, False
    while True:
        try:
            client.submit_job(
                entrypoint=_ENTRYPOINT,
                submission_id=job,
                runtime_env={"working_dir": folder, "env_vars": _environment(recipe)},
                metadata={"run_dir": str(recipe.run_dir)},
            )
            return
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > ends:
                raise RunFailed(f"the cluster did not take the job: {_first_line(error)}") from error
            if not waited:
                said = f"no node of the cluster takes jobs yet; trying again for {_SUBMIT_DEADLINE_S:g} s"
                Console(stderr=True).print(said, markup=False, highlight=False, soft_wrap=True)
            waited = True
            time.sleep(_AGAIN_S)


def attach(job: str, address: str) -> int:
    """Follow a job from the beginning of its log; returns its exit code."""
    client = _client(address)
    _check_job(client, job, address)
    return _follow(client, job, address)


def stop(job: str, address: str) -> int:
    """Ask a job to finish its step, save and end. Does not wait for it."""
    client = _client(address)
    _check_job(client, job, address)
    stopping = client.stop_job(job)
    said = f"{job} finishes its step, saves and ends" if stopping else f"{job} had ended already"
    Console().print(said, markup=False, highlight=False, soft_wrap=True)
    return 0


def _environment(recipe: Recipe) -> dict[str, str]:
    return {
        "PYTHONUNBUFFERED": "1",
        # Ray kills a stopped job after 3 s unless told; the run needs the time to finish its step and save.
        "RAY_JOB_STOP_WAIT_TIME_S": str(int(recipe.deadlines.stop_s) + 30),
    }


def _commands(job: str, address: str) -> list[str]:
    at = "" if address == DEFAULT_ADDRESS else f" --address {address}"
    return [f"  asyncrl attach {job}{at}    follows it again", f"  asyncrl stop {job}{at}    ends it after its step"]


def _client(address: str) -> JobSubmissionClient:
    """Raises UserError if no Ray dashboard answers at the address."""
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UserError(f"--address {address} is not of the form http://HOST:8265, the dashboard of a Ray cluster")
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((url.hostname, port), _CONNECT_DEADLINE_S).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--address {address}: {getattr(error, 'strerror', None) or error}; name the dashboard of a running Ray "
            "cluster (`ray start --head` prints it), or forward its port here"
        ) from error
    # Ray's command line does so too; its client here asks for the mode to be said.
    if has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Otherwise RAY_ADDRESS would win over what the command line says.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(
            f"--address {address} wants another token; set RAY_AUTH_TOKEN to what `ray get-auth-token` prints on its "
            "head"
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"--address {address} is no Ray dashboard that takes jobs: {_first_line(error)}") from error


def _check_job(client: JobSubmissionClient, job: str, address: str) -> None:
    try:
        client.get_job_status(job)
    except RuntimeError as error:
        known = [details.submission_id for details in client.list_jobs() if details.submission_id]
        there = f"there are {', '.join(sorted(known)[-5:])}" if known else "it has no jobs"
        raise UserError(f"{address} has no job {job}; {there}") from error


def _follow(client: JobSubmissionClient, job: str, address: str) -> int:
    try:
        asyncio.run(_print_log(client, job, address))
    except KeyboardInterrupt:
        lines = [f"\n{job} goes on.", *_commands(job, address)]
        Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
        return 0
    details = client.get_job_info(job)
    if details.status == "SUCCEEDED":
        return 0
    if details.status == "STOPPED":
        Console().print(f"{job} was stopped", markup=False, highlight=False, soft_wrap=True)
    elif details.driver_exit_code is None:
        raise RunFailed(f"job {job} did not start: {details.message}")
    return details.driver_exit_code or 0


async def _print_log(client: JobSubmissionClient, job: str, address: str) -> None:
    """Until the job has ended; a connection that breaks is made again, and nothing is printed twice."""
    out = Console().file
    num_printed = 0
    for _ in range(_MOST_RECONNECTS):
        num_seen = 0
        try:
            async for text in client.tail_job_logs(job):
                new = text[max(0, num_printed - num_seen) :]
                num_seen += len(text)
                num_printed = max(num_printed, num_seen)
                out.write(visible(new))
                out.flush()
            if (await asyncio.to_thread(client.get_job_status, job)).is_terminal():
                return
        except (OSError, RuntimeError):
            pass
        await asyncio.sleep(_AGAIN_S)
    raise RunFailed(f"{address} no longer answers; `asyncrl attach {job} --address {address}` follows the job again")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
