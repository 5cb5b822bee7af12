"""The pages that say how to read figures, and what to turn: every metric is there, and every key exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asyncrl.metric_names import MORE_KEYS, STEP_KEYS
from asyncrl.observe.bottleneck import _lines
from asyncrl.recipe.keys import every

DOCS = Path(__file__).resolve().parents[2] / "docs"


def metrics_of(page: str) -> set[str]:
    """Names in the first column of its tables; a name without a room is in the room of the one before it."""
    found = set()
    for cell in re.findall(r"^\| (`.*?) \| ", (DOCS / page).read_text(), re.MULTILINE):
        room = ""
        for name in re.findall(r"`([\w/]+)`", cell):
            room = name.rpartition("/")[0] if "/" in name else room
            found.add(name if "/" in name or not room else f"{room}/{name}")
    return found


def test_the_glossary_has_every_metric() -> None:
    known = metrics_of("metrics.md")
    assert {*STEP_KEYS, *MORE_KEYS} - known == {"step"}  # which the text above the tables explains
    assert known - {*STEP_KEYS, *MORE_KEYS} == {
        *("eval/NAME/accuracy", "eval/NAME/reward", "reward/NAME", "staleness/histogram")
    }


def test_each_bottleneck_has_its_keys_to_turn() -> None:
    rows = re.findall(r"^\| ([\w -]+) \|", (DOCS / "performance.md").read_text(), re.MULTILINE)
    assert {line.partition(":")[0] for line in _lines({}).values()} == set(rows) - {"the report says", "---"}


GUIDES = (
    *("metrics.md", "not_learning.md", "performance.md", "faq.md", "lora.md", "one_gpu.md", "one_node.md"),
    "reward_design.md",
)


@pytest.mark.parametrize("page", GUIDES)
def test_every_key_exists(page: str) -> None:
    rooms = {key.partition(".")[0] for key in every() if "." in key}
    said = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)[`=:]", (DOCS / page).read_text())
    keys = {name for name in said if name.partition(".")[0] in rooms}
    assert keys - {*every()} == {name for name in keys if name.startswith("rollout.engine_args.")}
