"""docs/scale.md is of the code that there is: one of its figures is made again, and what it says of others is so."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_a_figure_comes_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    lib_scale = importlib.import_module("lib_scale")
    assert lib_scale.limit("drop", 1, 32) in (ROOT / "docs/scale.md").read_text(), (
        "run scripts/scale: the page is behind"
    )


def test_what_is_off_by_more_than_a_fifth_is_said() -> None:
    page = (ROOT / "docs/scale.md").read_text()
    rows = re.findall(
        r"^\| \d+ \| [\d.]+ \| ([\d.]+)x \| ([\d.]+)x \| [^|]*?(\(more than 20 %\))? \|", page, re.MULTILINE
    )
    assert len(rows) == 6
    for theirs, simulated, said in rows:
        off = abs(float(simulated) / float(theirs) - 1)
        assert bool(said) == (off > 0.2) or off == pytest.approx(0.2, abs=0.01)
