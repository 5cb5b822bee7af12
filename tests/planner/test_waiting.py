"""A plan of many GPUs takes a while: that it is being made is said beside what it prints."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from asyncrl.cli import main
from asyncrl.planner import show
from asyncrl.terminal import progress

RECIPE = Path(__file__).parents[2] / "recipes/gsm8k-qwen.yaml"


def test_what_takes_a_while_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said, words = threading.Event(), progress.Phase.words

    def told(phase: progress.Phase, now_s: float) -> str:
        said.set()
        return words(phase, now_s)

    monkeypatch.setattr(progress, "_LOOK_S", 0.001)
    monkeypatch.setattr(progress.Phase, "due", lambda *_: not said.is_set())
    monkeypatch.setattr(progress.Phase, "words", told)
    monkeypatch.setattr(show, "report", lambda *_: ["planned"] if said.wait(60) else [])
    assert main(["plan", str(RECIPE)]) == 0
    out, err = capsys.readouterr()
    assert out == "planned\n"
    assert err.startswith(f"planning {RECIPE}, ")
