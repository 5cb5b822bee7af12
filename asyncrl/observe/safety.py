"""What `asyncrl doctor` sees that lets other users of the machine in."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from asyncrl.storage.writers import of_status, others

_RAYS = ("raylet", "gcs_server", "ray::")
_EVERYWHERE = ("0.0.0.0", "::")


def open_folders(recipe: Path | None) -> Iterator[str]:
    """Who else may replace what runs from here, or what a run has written; a recipe's own folder counts too."""
    for folder in dict.fromkeys([Path.cwd(), Path.cwd() / "runs", *([recipe.absolute().parent] if recipe else [])]):
        if fault := others(folder):
            yield fault


def open_temporary_folder() -> str | None:
    """Whether others may take the place of temporary files: a folder for all must be sticky."""
    folder = Path(tempfile.gettempdir())
    return of_status(folder, folder.stat(), last=False)


def listeners() -> Iterator[str]:
    """`NAME (PID) at PORT` of each process of this user's runs, or of a Ray, that listens on all addresses."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().effective == os.geteuid() and _is_ours(process):
                ports = {c.laddr.port for c in process.net_connections("tcp") if _listens_everywhere(c)}
                yield from (f"{process.name()} ({process.pid}) at {port}" for port in sorted(ports))


def _listens_everywhere(connection: psutil._common.pconn) -> bool:
    return connection.status == psutil.CONN_LISTEN and connection.laddr.ip in _EVERYWHERE


def _is_ours(process: psutil.Process) -> bool:
    return process.name().startswith(_RAYS) or "ASYNCRL_RUN" in process.environ()
