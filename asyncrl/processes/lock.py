"""One driver per run directory: an flock that the kernel frees however its holder ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

from asyncrl.errors import UserError

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class RunLock:
    """Context manager: holds RUN_DIR/.lock, which says who holds it: "PID HOST". The file stays, the lock does not.

    Raises UserError if another process works on the run directory. A file system without locks is a warning.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def __enter__(self) -> RunLock:
        try:
            # Not inherited by programs that are started (Python's default): what lives on must not hold the lock.
            self._file = os.open(self._run_dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise UserError(
                f"cannot write to {self._run_dir}: {error.strerror}; name a run directory of yours"
            ) from None
        try:
            self._lock()
        except BaseException:
            os.close(self._file)
            raise
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, host = os.pread(self._file, 300, 0).decode(errors="replace").strip().partition(" ")
            where = f" on {host}" if host not in ("", socket.gethostname()) else ""
            raise UserError(
                f"process {pid or '(unknown)'}{where} works on {self._run_dir} already; wait for it, "
                f"or stop it with `kill {pid or 'PID'}`{where}"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s is on a file system without locks; see that nothing else works on it", self._run_dir)
