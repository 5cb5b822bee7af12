"""That all processes of a run see one and the same run directory: the driver writes a nonce into it, and whoever reads
or writes there shows that it finds it before anything is loaded.

A folder of the same name on a node's own disk would take checkpoints that the driver calls complete and nobody finds.
"""

from __future__ import annotations

import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from asyncrl.errors import UserError
from asyncrl.storage.run_dir import replace, text

FILE = ".nonce"
_PATIENCE_S = 10.0
"""Network file systems show what another node wrote a little later."""
_POLL_S = 0.2


@dataclass(frozen=True)
class Sight:
    """The directory as the driver on `host` sees it."""

    run_dir: Path
    nonce: str
    host: str

    @classmethod
    def begin(cls, run_dir: Path) -> Sight:
        """In the driver."""
        nonce = secrets.token_hex(16)
        replace(run_dir / FILE, nonce)
        return cls(run_dir, nonce, socket.gethostname())

    def require(self, role: str) -> None:
        """Raises UserError in a process that sees another directory, or none."""
        until = time.monotonic() + _PATIENCE_S
        while text(self.run_dir, FILE) != self.nonce:
            if time.monotonic() > until:
                raise UserError(
                    f"run_dir: {role}, on node {socket.gethostname()}, does not see {self.run_dir} of the driver, on "
                    f"{self.host}; set run_dir to a path on a disk that all nodes share"
                )
            time.sleep(_POLL_S)
