"""The rewards beside the recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncrl.plugins import load_object

ROOT = Path(__file__).parents[2]
TEST = """
from solution import add

def test_small():
    assert add(1, 2) == 3

def test_negative():
    assert add(-1, 1) == 0
"""


def code(body: str) -> str:
    return f"Here it is:\n```python\n{body}\n```\nDone."


@pytest.mark.parametrize(
    ("completion", "share"),
    [
        (code("def add(a, b):\n    return a + b"), 1.0),
        (code("def add(a, b):\n    return 3"), 0.5),
        (code("def add(a, b):\n    return a -"), 0.0),
        (code("def mul(a, b):\n    return a * b"), 0.0),
        (code("raise SystemExit(0)"), 0.0),
        (code("print('passed 2 2')\nimport os\nos._exit(0)"), 0.0),
        (code("def add(a, b):\n    return len(' ' * 2**34)"), 0.0),
        (code("wrong") + code("def add(a, b):\n    return a + b"), 1.0),
        ("def add(a, b):\n    return a + b", 0.0),
    ],
)
def test_code_gets_the_share_of_its_tests(completion: str, share: float) -> None:
    reward = load_object("./recipes/code_reward.py:reward", ROOT, "reward")
    assert reward(completion, TEST) == {"reward": share, "accuracy": float(share == 1)}


def test_code_that_does_not_end_has_passed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = load_object("./recipes/code_reward.py:reward", ROOT, "reward")
    monkeypatch.setitem(reward.__globals__, "_TIMEOUT_S", 1)
    assert reward(code("while True: pass"), TEST)["reward"] == 0


@pytest.mark.parametrize(
    ("solution", "score"),
    [
        ("So it is 34.\n\nAnswer: 34", 1),
        ("Answer: 3\nNo, wait.\nAnswer: $34$", 1),
        ("**Answer:** \\boxed{34}", 1),
        ("Answer: 35", -1),
        ("It is 34.", -1),
    ],
)
def test_dapo_counts_the_last_answer(solution: str, score: int) -> None:
    compute_score = load_object("./recipes/dapo_reward.py:compute_score", ROOT, "reward")
    assert compute_score("math_dapo", solution, "34") == {"score": score, "accuracy": float(score == 1)}
