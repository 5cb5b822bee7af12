"""Stop signals, sent to a real process; it says what it received, line by line."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from asyncrl.orchestrator.stop import Stop, stop_in_time

# Ends with the third line on its stdin, so that every signal has a line that it comes before.
CHILD = """
import asyncio, signal, sys
from asyncrl.orchestrator.stop import StopSignals

def say(*words):
    print(*words, flush=True)

async def main():
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignals(loop, lambda name: say("first", name), lambda: say("second")):
        say("ready")
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            say("still here", line)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    say("left")
    while (await asyncio.to_thread(sys.stdin.readline)).strip():
        pass

signal.signal(signal.SIGTERM, lambda *_: (say("old handler"), sys.exit(7)))
# A shell starts what it runs in the background without Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
asyncio.run(main())
"""


class Child:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # Whatever hangs, ends here.
        self.watchdog = threading.Timer(60, self.process.kill)
        self.watchdog.start()
        assert self.hear() == "ready"

    def hear(self) -> str:
        return self.process.stdout.readline().strip()

    def say(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended_by(self, number: signal.Signals) -> int | None:
        """Exit code after a signal. Lines wake the child: a handler in Python waits for the main thread, which may
        have gone to sleep just before the signal came."""
        self.tell(number)
        deadline = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(BrokenPipeError):
                self.say("anyone?")
        return self.process.poll()


@pytest.fixture
def child():
    child = Child()
    yield child
    child.watchdog.cancel()
    child.process.kill()
    child.process.communicate()


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_first_second_and_no_more(child: Child, first: signal.Signals, second: signal.Signals) -> None:
    child.tell(first)
    assert child.hear() == f"first {first.name}"
    child.tell(second)
    assert child.hear() == "second"
    for number in (first, second):
        child.tell(number)
        # An answer that comes next shows that the signal had none.
        child.say("anyone?")
        assert child.hear() == "still here anyone?"


def test_without_a_signal_nothing_happens(child: Child) -> None:
    child.say("a")
    assert child.hear() == "still here a"
    child.say("")
    assert child.hear() == "left"
    child.say("")
    assert child.process.wait(30) == 0


def test_the_handlers_from_before_are_back_afterwards(child: Child) -> None:
    child.tell(signal.SIGINT)
    assert child.hear() == "first SIGINT"
    child.say("")
    assert child.hear() == "left"
    assert child.ended_by(signal.SIGTERM) == 7
    assert child.hear() == "old handler"


def test_ctrl_c_is_asyncios_again_afterwards(child: Child) -> None:
    child.say("")
    assert child.hear() == "left"
    # asyncio.run cancels its main task, which waits for the thread that reads.
    assert child.ended_by(signal.SIGINT) not in (None, 0)
    assert "KeyboardInterrupt" in child.process.stderr.read()


@pytest.mark.parametrize(
    ("hours", "runs_s", "expected"), [(1e-5, 0.3, 1), (1e-5, 0.0, 0), (1.0, 0.1, 0), (None, 0.1, 0)]
)
def test_the_end_of_max_hours_asks_once_and_not_after_the_run(
    hours: float | None, runs_s: float, expected: int
) -> None:
    asked: list[Stop] = []

    async def main() -> None:
        with stop_in_time(hours, asked.append):
            await asyncio.sleep(runs_s)
        await asyncio.sleep(0.1)

    asyncio.run(main())
    assert [(stop.why, stop.failed) for stop in asked] == [("stopped by max_hours 1e-05", False)] * expected
