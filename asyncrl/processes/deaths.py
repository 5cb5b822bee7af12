"""Why an actor is gone: the gist of Ray's page about it, and what its process wrote last."""

from __future__ import annotations

import re
from pathlib import Path

import ray

from asyncrl.processes.last_words import crash, of_memory, tail


def reason(error: Exception) -> str:
    """In half a sentence."""
    page = str(error).strip()
    if "memory" in page and of_memory(page) and "killed" in page:
        return "its node ran low on memory, and Ray ended it; ask for less there"
    text = (page.splitlines() or [type(error).__name__])[-1].strip()
    if "worker process has died" not in text:
        return re.sub(r"^asyncrl(\.\w+)+: ", "", text)
    known = re.search(r"\bpid: (\d+)", page)
    files = _error_files(int(known[1])) if known else []
    if not files:
        return "its process has died"
    words = next((found for file in files if (found := crash(tail(file)))), None)
    return f"its process has died, with {words}" if words else "its process was killed, for memory as a rule"


def _error_files(pid: int) -> list[Path]:
    """Of a Ray worker of this machine."""
    node = ray._private.worker._global_node
    logs = Path(node.get_logs_dir_path()) if node is not None else None
    return sorted(logs.glob(f"worker-*-{pid}.err")) if logs else []
