"""Every recipe in recipes/: short, sound, planned as its header says, and in the table of docs/recipes.md."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from asyncrl.cli import main
from asyncrl.cluster.shape import pieces
from asyncrl.planner import show
from asyncrl.planner.plan import plan
from asyncrl.recipe.load import load

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
ON_GPUS = [path for path in RECIPES if pieces(load(path))]
NAMES = [path.stem for path in RECIPES]
PLANNED = re.compile(r"^# Planned for (\d+) x (\S+): (.+)\.$", re.MULTILINE)
MOST_LINES = 40


def table() -> dict[str, list[str]]:
    """Cells of each row of docs/recipes.md, by recipe."""
    rows = re.findall(r"^\| `recipes/([\w-]+)\.yaml` \| (.+) \|$", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in rows}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where recipes are run from, with the model that the quickstart makes, and the one that it trains."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("models/smollm2-135m-instruct", "runs/arithmetic/checkpoints/step_000020/model"):
        model = tmp_path / name
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "chat_template.jinja").write_text("{{ messages }}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_recipes_for_many_machines() -> None:
    assert len(RECIPES) >= 8
    assert len(ON_GPUS) >= 8
    sizes = {sum(piece.num_gpus for piece in pieces(load(path))) for path in RECIPES}
    assert {0, 2, 4, 8, 32} <= sizes


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_is_short_and_says_whether_it_has_run(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    if path in ON_GPUS:
        assert "Not run yet." in text
        assert PLANNED.search(text)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_it_passes_the_checks(path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"recipes/{path.name}", "--dry-run"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", ON_GPUS, ids=[path.stem for path in ON_GPUS])
def test_its_header_and_the_docs_say_what_is_planned_today(path: Path) -> None:
    recipe = load(path)
    said = PLANNED.search(path.read_text())
    assert said is not None
    found = plan(recipe, ROOT, int(said[1]), said[2])
    own = found.as_it_stands
    assert own is not None, "it asks for other GPUs than its header says"
    assert show.line(found, own) == f"{said[1]} x {said[2]}: {said[3]}"
    assert own.figures.samples_per_s > 0.85 * found.rows[0].figures.samples_per_s, "the planner knows a better division"
    assert table()[path.stem][1:] == [f"{said[1]} x {said[2]}", f"planned: {said[3]}", "no"]


def test_the_docs_have_all_of_them() -> None:
    assert sorted(table()) == NAMES
