"""What docs/ has of tables and schemas is what scripts/pages makes of them."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from asyncrl.recipe import elsewhere
from asyncrl.recipe.keys import every, fields, type_of
from asyncrl.recipe.renamed import GONE, MOVED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lib_pages", ROOT / "scripts/lib_pages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["lib_pages"] = module
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_as_they_are_made(pages: ModuleType) -> None:
    for page, text in pages.made().items():
        assert page.read_text() == text, f"run scripts/pages: {page.name} is behind"


def test_the_reference_has_every_key_in_full_with_a_line_and_those_of_before() -> None:
    text = (ROOT / "docs/reference.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| .* \| (.*) \|$", text, re.MULTILINE))
    inner = re.compile(r"^(data|eval|algorithm\.sft)\.(reward|data)\.")
    wanted = {key for key in every() if not inner.match(key)}
    assert wanted <= set(rows)
    assert all(rows[key].strip() for key in wanted), [key for key in wanted if not rows[key].strip()]
    assert {*MOVED, *GONE} <= set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("rollout.engine", "text"),
        ("on_stale", "`wait`, `drop`, `mask`"),
        ("group_size", "whole number > 0"),
        ("trainer.learning_rate", "number > 0 <= 1"),
        ("max_staleness", "whole number >= 0 or number >= 0"),
        ("algorithm.dual_clip", "number > 1 or null"),
        ("track.tags", "list of text"),
        ("rollout.engine_args", "a mapping"),
        ("data", "a mapping or list of mappings"),
        ("trainer.gradient_checkpointing", "true or false"),
        ("trainer.lora.targets", "text or list of text"),
    ],
)
def test_types_in_words(key: str, words: str) -> None:
    assert type_of(fields()[key]) == words


@pytest.mark.parametrize(("page", "system"), [("from_trl.md", "trl"), ("from_verl.md", "verl")])
def test_the_tables_of_names_leave_none_out(page: str, system: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    for row in elsewhere.table(system):
        for name in row.names:
            assert re.search(rf"[`.,{{]{re.escape(name.rpartition('.')[2])}[`,}}]", text), name


def test_the_readme_is_read_in_a_few_minutes() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 200
    first_screen = "\n".join(lines[:16])
    assert "asyncrl new" in first_screen
    assert "asyncrl train" in first_screen
    assert "![" in first_screen
