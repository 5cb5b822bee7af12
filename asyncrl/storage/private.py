"""Folders that no other user enters, in places that all users share: /tmp, /dev/shm.

Each has a random name and is locked as long as the process that made it lives; what a process left that was killed is
removed by this user's next one that makes a folder there. No name is taken from a file that others may have written.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from asyncrl.errors import RunFailed

_PREFIX = "asyncrl."
_NAME = re.compile(r"asyncrl\.[a-z0-9_]{8}")
"""As tempfile makes it; `asyncrl.egg-info` is none of ours."""
WITHIN = "ASYNCRL_PRIVATE"
"""In the environment of a run's own Ray: the folder that is removed at the run's end, however its actors end."""
_held: dict[Path, int] = {}
"""Descriptors that hold the locks."""


def make(parent: Path) -> Path:
    """A new folder, mode 0700. Raises OSError."""
    for left in parent.glob(f"{_PREFIX}*"):
        if _NAME.fullmatch(left.name):
            _remove_left(left)
    # Locked before it has a name that others of this user look for.
    hidden = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))
    descriptor = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):  # a file system without locks: nobody takes it for left behind either
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    folder = parent / hidden.name[1:]
    hidden.rename(folder)
    _held[folder] = descriptor
    return folder


def remove(folder: Path) -> None:
    """One that this process has made, and what is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder in _held:
        os.close(_held.pop(folder))


def _remove_left(folder: Path) -> None:
    """If it is this user's, and whoever made it is gone."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            found = os.fstat(descriptor)
            if found.st_uid == os.geteuid() and not found.st_mode & 0o077:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def of_process() -> Path:
    """A new folder for this process and its children. Raises OSError."""
    folder, pid = make(Path(os.environ.get(WITHIN) or tempfile.gettempdir())), os.getpid()
    atexit.register(lambda: remove(folder) if os.getpid() == pid else None)
    return folder


def open_file(path: Path, flags: int = os.O_RDWR) -> int:
    """A descriptor of a file of this user that nobody else can open. Raises RunFailed for any other, and
    FileNotFoundError."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        descriptor = os.open(path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=folder)
        for one, is_kind in ((folder, stat.S_ISDIR), (descriptor, stat.S_ISREG)):
            found = os.fstat(one)
            if found.st_uid != os.geteuid() or found.st_mode & 0o077 or not is_kind(found.st_mode):
                os.close(descriptor)
                raise RunFailed(f"{path} is open to others than its owner, or no file: it is not used")
        return descriptor
    finally:
        os.close(folder)
