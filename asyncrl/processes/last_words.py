"""What a process that died wrote last, in one line."""

from __future__ import annotations

import os
import re
from pathlib import Path

_STDERR = Path("/proc/self/fd/2")
_MOST_BYTES, _MOST_CHARS = 2**16, 500
_PREFIX = re.compile(r"^\(\w[^()]* pid=\d+\) ")
"""vLLM's, before each line of its processes."""
_UNCAUGHT = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Exit|Exhausted|Interrupt|Invalid\w*)(?:: .+)?$")
_CRASH = re.compile(r"SIG[A-Z]+ received|^Fatal Python error: .+|^terminate called .+|^\s*what\(\): .+")
_NOT_THE_CAUSE = ("initialization failed", "See root cause above", "See stack trace for root cause")
_MEMORY = re.compile(
    r"out of memory|can.t allocate memory|cannot allocate memory|not enough memory"
    r"|available memory|free memory on device|memory is needed|bad_alloc|MemoryError|OutOfMemory|low on memory",
    re.IGNORECASE,
)


class ErrorOutput:
    """Of this process and its children, from now on, where it is a file: that of a Ray worker is."""

    def __init__(self) -> None:
        self._begin = _STDERR.stat().st_size if _STDERR.is_file() else None

    def text(self) -> str:
        return "" if self._begin is None else tail(_STDERR, self._begin)


def tail(path: Path, begin: int = 0) -> str:
    """The last 64 KiB of a file behind an offset; nothing if it is gone."""
    try:
        with path.open("rb") as file:
            file.seek(max(begin, file.seek(0, os.SEEK_END) - _MOST_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def crash(text: str) -> str | None:
    """What a process wrote that did not end by an exception."""
    return _last(text, _CRASH)


def cause(text: str) -> str | None:
    """The exception that ended a process: the last one, but for those that only tell of another process's; else its
    crash."""
    return _last(text, _UNCAUGHT) or crash(text)


def of_memory(words: str) -> bool:
    return bool(_MEMORY.search(words))


def _last(text: str, pattern: re.Pattern[str]) -> str | None:
    lines = [_PREFIX.sub("", line).rstrip() for line in text.splitlines()]
    found = [line for line in lines if pattern.search(line) and not any(words in line for words in _NOT_THE_CAUSE)]
    return " ".join(found[-1].strip("* ").split())[:_MOST_CHARS] if found else None
