"""Memory of this machine, or of the container that this process is in: a container sees all of its machine's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Of control groups, versions 2 and 1 (docs.kernel.org/admin-guide/cgroup-v2.html)."""


def total() -> int:
    """Bytes that this process could ever have."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def available() -> int:
    """Bytes that are free, or would be."""
    return min([psutil.virtual_memory().available, *(max(0, limit - used) for limit, used in _limits())])


def _limits() -> Iterator[tuple[int, int]]:
    """Bytes allowed and bytes in use, of each control group with a limit that this process is in."""
    for folder in _folders():
        for limit_file, used_file in _FILES:
            try:
                limit, used = (int((folder / name).read_text()) for name in (limit_file, used_file))
            except (OSError, ValueError):  # not there, or "max"
                continue
            yield limit, used - _reclaimable(folder)


def _folders() -> Iterator[Path]:
    """Its control group and those above it, as far as they are seen from here."""
    lines = _OWN.read_text().splitlines() if _OWN.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers or "memory" in controllers.split(","):
            folder = (root := _GROUPS / ("memory" if controllers else "")) / path.lstrip("/")
            yield from (place for place in (folder, *folder.parents) if place.is_relative_to(root))


def _reclaimable(folder: Path) -> int:
    """Pages of files that nobody used of late."""
    try:
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0
