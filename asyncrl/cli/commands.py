"""The command line: `asyncrl COMMAND ...`; `asyncrl --help` lists the commands.

What a command needs is imported when it runs: `--help` and `--dry-run` load neither torch nor ray nor vllm.
Exit codes: 0 done, 1 the run failed or nothing was found, 2 bad input (one sentence on stderr, nothing written),
130 interrupted, 143 ended by SIGTERM, 141 who read the output has gone (`| head`).
"""

from __future__ import annotations

import argparse
import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from asyncrl.cli.arguments import parse
from asyncrl.cli.quiet import quiet
from asyncrl.errors import RunFailed, UserError
from asyncrl.terminal.escape import visible

_COMMANDS: dict[str, str] = {
    "train": "running.train",
    "sft": "running.sft",
    "new": "starting.new",
    "import": "starting.convert",
    "recipes": "starting.recipes",
    "resume": "running.resume",
    "sweep": "sweeping.sweep",
    "eval": "evaluating.evaluate",
    "plan": "running.plan",
    "data": "reading.data",
    "submit": "running.submit",
    "attach": "running.job",
    "stop": "running.job",
    "report": "reading.report",
    "watch": "reading.watch",
    "compare": "reading.compare",
    "inspect": "reading.inspect",
    "export": "reading.export",
    "replay": "reading.replay",
    "completion": "starting.completion",
    "doctor": "reading.doctor",
}
"""Module of this room and function: `--help` waits for none of them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        try:
            with _terminable():
                return _run(parse(argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread(sys.stdout.fileno()):
            raise
        # What is still in the buffer would be written, and fail, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = max(Path(error.filename).parts, key=len)
        return _fail(f"the name {name[:40]}… is too long for a file system; choose a shorter one", 2)
    except (UserError, RunFailed) as error:
        # An error raised in an actor arrives inside Ray's, whose text is a traceback.
        cause = getattr(error, "cause", error)
        return _fail(" ".join(str(cause).split()), 2 if isinstance(error, UserError) else 1)
    except _Terminated:
        return _fail("ended by SIGTERM", 143)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


class _Terminated(KeyboardInterrupt):
    """SIGTERM cleans up as Ctrl-C does."""


@contextmanager
def _terminable() -> Iterator[None]:
    """In the block SIGTERM raises, once: what cleans up then is not interrupted. A running run has its own way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminated(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _fail(sentence: str, code: int) -> int:
    print(f"asyncrl: {visible(sentence)}", file=sys.stderr)
    return code


def _is_unread(file: int) -> bool:
    """Whether it is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(file, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(arguments: argparse.Namespace) -> int:
    quiet()
    if "run_dir" in arguments:
        from asyncrl.cli.common import local

        arguments.run_dir = local(arguments.run_dir, whole=arguments.command in ("resume", "replay"))
    if arguments.command is None:
        return 0
    return command(arguments.command)(arguments)


def command(name: str) -> Callable[[argparse.Namespace], int]:
    """What does it."""
    module, _, function = _COMMANDS[name].partition(".")
    found: Callable[[argparse.Namespace], int] = getattr(import_module(f"asyncrl.cli.{module}"), function)
    return found
