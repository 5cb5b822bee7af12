"""Every reward that the documentation shows gives a right answer more than a wrong one, and fails neither."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncrl.rewards.load import load
from asyncrl.rewards.score import RewardRequest, TrainerState

ROOT = Path(__file__).resolve().parents[2]
ROW = {"answer": "5", "prompt": "What is 2 + 3?"}


def shown() -> Iterator[tuple[str, str, str]]:
    """Page, function or class, and the block that has it."""
    names = ("rewards.md", "reward_design.md", "from_trl.md", "from_verl.md")
    for page in (ROOT / "README.md", *(ROOT / "docs" / name for name in names)):
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            if "env.path" in block:  # tests/docs/test_environments.py
                continue
            for node in ast.parse(block).body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    yield page.stem, node.name, block


SHOWN = list(shown())


@pytest.mark.parametrize(("page", "name", "block"), SHOWN, ids=[f"{page} {name}" for page, name, _ in SHOWN])
def test_a_reward_of_the_docs(page: str, name: str, block: str, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(block)
    function = load(f"./shown.py:{name}", tmp_path)
    texts = ["it is 5", "it is 4"]
    request = RewardRequest(ROW["prompt"], texts, [[1], [2]], ["stop", "stop"], ROW, TrainerState(0, 6, 0.0))
    right, wrong = function.score(request)
    assert (right.error, wrong.error) == (None, None)
    assert right.reward > wrong.reward


def test_all_pages_about_rewards_have_one() -> None:
    assert {page for page, _, _ in SHOWN} == {"README", "rewards", "reward_design", "from_trl", "from_verl"}
    assert len(SHOWN) >= 7
