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
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

EVERY_S = 1.0

Status = dict[str, Any]
"""`phase` (what is done now), `steps_done`, `live` (version), `ledger`, `waiting` (sentences, the longest first),
`generators`, `warnings` (those that hold); in the file also `time_s`, since the epoch."""


@asynccontextmanager
async def told(path: Path, status: Callable[[], Status], show: Callable[[Status], None]) -> AsyncIterator[None]:
    """Write and show the status while the block runs, and once more at its end."""

    async def tell() -> None:
        now = status()
        show(now)
        with contextlib.suppress(OSError):
            await asyncio.to_thread(_write, path, {"time_s": time.time(), **now})

    async def follow() -> None:
        while not ended.is_set():
            await tell()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), EVERY_S)
        await tell()

    ended = asyncio.Event()
    following = asyncio.create_task(follow())
    try:
        yield
    finally:
        ended.set()
        await following


def _write(path: Path, status: Status) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(status))
    part.replace(path)
