"""Signs of life outside a run: a bar on a terminal, lines elsewhere, nothing if it is quick."""

from __future__ import annotations

import io
import threading

from rich.console import Console

from asyncrl.terminal import progress
from asyncrl.terminal.progress import Phase, shown


def test_a_phase_is_due_at_each_doubling_and_not_twice() -> None:
    phase = Phase("reading", 100.0, total=4)
    phase.done = 1
    assert [second for second in range(60) if phase.due(100.0 + second)] == [5, 10, 20, 40]
    # A clock that jumps has one line, not one for each that was missed.
    late = Phase("reading", 100.0)
    assert late.due(190.0)
    assert not late.due(191.0)
    assert phase.words(160.0) == "reading, 1 of 4, 1 min 00 s"
    assert late.words(107.0) == "reading, 7 s"


def test_what_is_quick_says_nothing_in_a_log() -> None:
    out = io.StringIO()
    with shown("reading", total=3, console=Console(file=out)) as advance:
        advance(3)
    assert out.getvalue() == ""


def test_a_log_has_a_line_of_what_lasts(monkeypatch) -> None:
    said = threading.Event()

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            said.set()
            return super().write(text)

    monkeypatch.setattr(progress, "_LOOK_S", 0.001)
    monkeypatch.setattr(Phase, "due", lambda phase, now_s: phase.done == 2 and not said.is_set())
    out = Out()
    with shown("reading", total=3, console=Console(file=out)) as advance:
        advance(2)
        assert said.wait(30)
    assert out.getvalue() == "reading, 2 of 3, 0 s\n"


def test_a_terminal_has_a_bar() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with shown("reading", total=3, console=console) as advance:
        advance(3)
    assert "3/3" in out.getvalue()


def test_a_terminal_has_the_time_where_no_amount_is_known() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with shown("importing", console=console):
        pass
    assert "importing" in out.getvalue()
    assert "0:00:00" in out.getvalue()
    assert "/" not in out.getvalue()
