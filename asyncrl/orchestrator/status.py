"""Where a run stands between its steps: RUN_DIR/status.json, and the terminal's panel, once a second.

    driver, fleet, waits --every second--> status.json --> `asyncrl watch`
                                       \\--> panel
The file is replaced as a whole, so a reader sees the old one or the new one; it is not made durable, for it is of no
use to a resume. One that cannot be written is left out: the journal says what is wrong with a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncrl
from asyncrl.storage.run_dir import replace

EVERY_S = 1.0
_NUM_LOGGED, _MOST_CHARS = 20, 1000

Status = dict[str, Any]
"""`phase` (what is done now), `steps_done`, `live` (version), `ledger`, `waiting` (sentences, the longest first),
`generators`, `warnings` (those that hold); in the file also `time_s`, since the epoch, `log`, the last warnings, and of
this process when it began (`began_s`, since the epoch), its `host` and the version of `asyncrl`."""


@asynccontextmanager
async def told(path: Path, status: Callable[[], Status], show: Callable[[Status], None]) -> AsyncIterator[None]:
    """Write and show the status while the block runs, and once more at its end."""

    async def tell() -> None:
        now = status()
        show(now)
        with contextlib.suppress(OSError):
            text = json.dumps({"time_s": time.time(), **began, **now, "log": list(logged.last)})
            await asyncio.to_thread(replace, path, text)

    async def follow() -> None:
        while not ended.is_set():
            await tell()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), EVERY_S)
        await tell()

    began = {"began_s": time.time(), "host": socket.gethostname(), "asyncrl": asyncrl.__version__}
    ended, logged, logger = asyncio.Event(), LastWarnings(), logging.getLogger("asyncrl")
    logger.addHandler(logged)
    following = asyncio.create_task(follow())
    try:
        yield
    finally:
        ended.set()
        await following
        logger.removeHandler(logged)


class LastWarnings(logging.Handler):
    """The last warnings and errors that the driver logged, as (seconds since the epoch, text)."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last: deque[tuple[float, str]] = deque(maxlen=_NUM_LOGGED)

    def emit(self, record: logging.LogRecord) -> None:
        self.last.append((record.created, record.getMessage()[:_MOST_CHARS]))
