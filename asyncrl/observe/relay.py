"""Warnings of a process that nobody watches, on their way to the driver, which says them where the user looks.

    actor: any logger --Relay--> memory --take--> driver's log (`orchestrator/notices.py`)
    engine's process: any logger --Relay--> a file in the actor's private folder --take--> ...
Nothing here waits for anyone, and nothing is sent twice: what is said again and again goes out at its first three
times, and then at every power of ten.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

from asyncrl.storage import private

_LOGGERS = ("asyncrl", "vllm", "transformers", "torch", "py.warnings")
"""Some of them do not hand records on to the root."""
_FILE = "ASYNCRL_NOTICES"
TOLD = "told"
"""Set on records of which the driver hears in another way (`extra={TOLD: True}`)."""
_MOST, _MOST_KEYS, _MOST_CHARS, _FEW = 100, 1000, 1000, 3
_EXPECTED = (
    # What the adapter's own settings, and a CPU, make vLLM say.
    "This model does not officially support disabling chunked prefill",
    "Enforce eager set",
    "Inductor compilation was disabled",
    "Triton is",
    "Model Runner V2 requires Triton",
    "Reset SSM cache type",
    "Passing raw prompts to InputProcessor is deprecated",
    "libtcmalloc is not found",
    "OMP_NUM_THREADS=",
    "libiomp is not found",
    # Layers that hold no weights of their own; a tied head is repacked by `weights/host.py`.
    "RotaryEmbedding: Failed to load weights",
    # That weights are rounded is said where the initial model's export is compared.
    "Attempted to load weight ",
    "ParallelLMHead: Failed to load weights",
)


class Notice(NamedTuple):
    """A warning or an error, in one line."""

    level: int
    text: str


class Repeats:
    """Counts what is said, and lets through what is said for the first times."""

    def __init__(self) -> None:
        self._times: Counter[str] = Counter()

    def words(self, key: str, text: str) -> str | None:
        """The text to say, None if it was said often enough."""
        if len(self._times) > _MOST_KEYS:
            self._times.clear()
        self._times[key] += 1
        times = self._times[key]
        if times <= _FEW:
            return text
        return f"{text} (for the {times}th time)" if times == 10 ** (len(str(times)) - 1) else None


class Relay(logging.Handler):
    """Keeps the notices of this process, or appends them to a file of the process that answers for it."""

    def __init__(self, file: Path | None = None) -> None:
        super().__init__(logging.WARNING)
        self._file, self._repeats = file, Repeats()
        self._kept: deque[Notice] = deque()
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            notice = self._notice(record)
            if notice is None:
                return
            if self._file is None:
                if len(self._kept) < _MOST:
                    self._kept.append(notice)
                else:
                    self._lost += 1
            else:
                with os.fdopen(private.open_file(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a") as file:
                    file.write(json.dumps(notice) + "\n")
        except Exception:
            # A warning that cannot be handed on must not end what it warns of; it is in the process's own file.
            self.handleError(record)

    def _notice(self, record: logging.LogRecord) -> Notice | None:
        text = " ".join(record.getMessage().split())
        library, _, _ = record.name.partition(".")
        if getattr(record, TOLD, False):
            return None
        if library != "asyncrl" and (text.startswith(_EXPECTED) or _deprecation(record)):
            return None
        if record.exc_info and (error := record.exc_info[1]) is not None:
            text += f": {type(error).__name__}: {error}"
        ours = library == "asyncrl"
        words = self._repeats.words(str(record.msg) if ours else text, text[:_MOST_CHARS])
        if words is None:
            return None
        return Notice(record.levelno, words if ours else f"{library}: {words}")

    def take(self) -> list[Notice]:
        """What came since the last call."""
        found = []
        while self._kept:
            found.append(self._kept.popleft())
        lost, self._lost = self._lost, 0
        if lost:
            found.append(Notice(logging.WARNING, f"{lost} more warnings, which are in its own file alone"))
        return found


def relay() -> None:
    """In an actor: keep what it warns of for `take`, and let its children hand on theirs."""
    global _relay
    os.environ[_FILE] = str(private.of_process() / "notices")
    _relay = Relay()
    _attach(_relay)


def relay_to_parent() -> None:
    """In a process that an actor has started. What it makes in /tmp, as vLLM does to find its workers, is in the
    actor's private folder."""
    if file := os.environ.get(_FILE):
        tempfile.tempdir = os.path.dirname(file)
        _attach(Relay(Path(file)))


def take() -> list[Notice]:
    """What this process and those that it has started have warned of since the last call."""
    if _relay is None:
        return []
    found = _relay.take()
    file = Path(os.environ[_FILE])
    taken = file.with_name(f"{file.name}.taken")
    with contextlib.suppress(FileNotFoundError):
        file.replace(taken)
        found += [Notice(*json.loads(line)) for line in taken.read_text().splitlines()]
        taken.unlink()
    return found


_relay: Relay | None = None


def _attach(handler: Relay) -> None:
    logging.captureWarnings(True)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for known in [h for h in logger.handlers if isinstance(h, Relay)]:
            logger.removeHandler(known)
        logger.addHandler(handler)


def _deprecation(record: logging.LogRecord) -> bool:
    """Meant for who wrote the library."""
    return record.name == "py.warnings" and any(
        kind in record.getMessage() for kind in ("DeprecationWarning", "FutureWarning", "ResourceWarning")
    )
