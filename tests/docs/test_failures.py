"""The pictures of runs that do not learn are drawn from the records of these runs, and show what the page says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from asyncrl.recipe.load import load

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("entropy", "flat", "length", "rate", "stale")


@pytest.fixture(scope="module")
def failures() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "scripts"))
    import lib_failures

    yield lib_failures
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def curves(failures: ModuleType) -> dict[str, Any]:
    return json.loads(failures.CURVES.read_text())


def test_the_pictures_are_as_they_are_made(failures: ModuleType) -> None:
    made = failures.made()
    assert sorted(path.stem for path in made) == sorted(path.stem for path in failures.OUT.glob("*.svg")) == [*NAMES]
    for path, text in made.items():
        assert path.read_text() == text, f"run scripts/failures: {path.name} is behind"


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_small_and_says_what_it_is(name: str) -> None:
    text = (ROOT / f"docs/failures/{name}.svg").read_text()
    assert len(text) < 10_000
    root = ElementTree.fromstring(text)
    assert root.get("aria-label")
    assert len(root.findall(".//{*}path[@stroke-width='2']")) >= 1
    assert f"](failures/{name}.svg)" in (ROOT / "docs/not_learning.md").read_text()


def test_the_commands_are_those_of_the_runs(
    failures: ModuleType, curves: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for name, (recipe, *overrides) in failures.RUNS.items():
        assert curves[name]["command"] == " ".join([recipe, *overrides])
        assert len(curves[name]["reward/mean"]) == load(Path(recipe), overrides).max_steps


def test_the_runs_are_what_the_page_says(curves: dict[str, Any]) -> None:
    assert {*curves["flat"]["reward/mean"], *curves["flat"]["trainer/grad_norm"]} == {0.0}
    first, *_, last = (value for value in curves["entropy"]["trainer/entropy"] if value is not None)
    assert (first > 5, last < 1, curves["entropy"]["reward/mean"][-1] <= 0.5) == (True, True, True)
    assert curves["length"]["reward/mean"][-1] == 1
    assert curves["length"]["reward/letters"][0] > 0.2 > 0.01 > curves["length"]["reward/letters"][-1]
    assert max(curves["rate"]["reward/mean"]) == curves["rate"]["reward/mean"][0]
    assert min(share for share in curves["rate"]["offpolicy/ess"] if share is not None) < 0.02
    assert max(share for share in curves["rate"]["offpolicy/clip_fraction"] if share is not None) > 0.5
