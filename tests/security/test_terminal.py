"""What a run says reaches a terminal as text: nothing in it is an instruction to the terminal."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import stranger
from rich.text import Text

from asyncrl.buffer import log
from asyncrl.buffer.records import GROUP, GROUPS_STREAM
from asyncrl.cli import main
from asyncrl.rollout.trajectory import Group, encode
from asyncrl.terminal.console import Console, RunConsole
from asyncrl.terminal.escape import VisibleFormatter, visible
from asyncrl.terminal.live import LiveView
from asyncrl.terminal.progress import shown

HOSTILE = "\x1b[2J\x1b]0;title\x07\x1b]8;;http://evil\x1b\\\x9b31m\x08\x0b\r\x7f\u202egpj.exe\u2066\u200f\ud800[red]"
SHOWN = r"\x1b[2J\x1b]0;title\x07\x1b]8;;http://evil\x1b\\x9b31m\x08\x0b\r\x7f\u202egpj.exe\u2066\u200f\ud800[red]"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def test_what_is_not_seen_is_an_escape() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible(plain := "two\n\tlines, ünïcode 🙂 שלום") == plain


def test_every_console_shows_escapes() -> None:
    for console in (Console, RunConsole):
        for shape in (HOSTILE, Text(HOSTILE.replace("\ud800", ""))):
            out = io.StringIO()
            console(file=out, force_terminal=True, width=400, color_system=None).print(shape, markup=False)
            assert unsafe(out.getvalue()) == set()


def test_inspect_shows_escapes(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = HOSTILE.replace("\ud800", "")
    said = {"finish_reason": text, "error": text, "notes": {text: text}, "extras": {text: 1.0}}
    writer = log.JournalWriter(run_dir / "journal", GROUPS_STREAM)
    writer.append(GROUP, encode(Group(1, 0, 7, (stranger.trajectory(None, f"2+2={text}", **said),))))
    writer.close()
    for options in ([], ["--show"]):
        assert main(["inspect", str(run_dir), "--task", "1", *options]) == 0
        out = capsys.readouterr().out
        assert unsafe(out) == set()
        assert r"\x1b[2J\x1b]0;title\x07" in out
        assert "[red]" in out or not options


def test_sentences_and_logs_show_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"{HOSTILE[:-6]}.yaml"]) == main(["report", f"\x9b2J{HOSTILE[-40:-6]}"]) == 2
    assert unsafe(capsys.readouterr().err) == set()
    record = logging.LogRecord("asyncrl", logging.WARNING, "", 0, "the reward: %s", (HOSTILE,), None)
    assert VisibleFormatter().format(record) == f"the reward: {SHOWN}"


def test_the_live_panel_and_progress_show_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    text = HOSTILE.replace("\ud800", "")
    out = io.StringIO()
    console = RunConsole(file=out, force_terminal=True, width=200, color_system=None, _environ={"TERM": "xterm"})
    status: dict[str, Any] = {"waiting": [text], "warnings": [text], "generators": [{"name": text, "state": text}]}
    with LiveView(3, text, 1, console) as view, shown(text, console=console):
        view.state(status)
        view.phase(text)
        console.print(view._panel())
    # The view moves the cursor itself, but not as the text would.
    assert not {"\x07", "\x9b", "\x08", "\u202e", "\x7f"} & set(out.getvalue())
    assert "\x1b]" not in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()


def test_a_resolved_recipe_shows_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": HOSTILE.replace("\ud800", ""), "answer": "4"}) + "\n")
    overrides = [f"data.path={rows}", "data.options={}", "data.prompt_column=prompt", "track.project=a\u202eb"]
    assert main(["train", "recipes/tiny.yaml", "--dry-run", *overrides]) == 0
    out = capsys.readouterr().out
    assert unsafe(out) == set()
    assert r"\u202e" in out


def unsafe(text: str) -> set[str]:
    """What is left in it that a terminal would obey; the colours are ours."""
    return set(re.findall(r"[^\x20-\x7e\n\t]", COLOURS.sub("", text))) & set(HOSTILE)
