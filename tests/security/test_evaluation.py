"""What a model wrote is a formula or a literal, or it is not evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
from reasoning_gym import get_score_answer_fn

from asyncrl.rewards.evaluation import Refused, formulas_only
from asyncrl.rewards.math import reasoning_gym as score

EVALUATED = (
    *("countdown", "puzzle24", "n_queens", "string_insertion", "polynomial_multiplication", "simple_integration"),
    *("intermediate_integration", "spiral_matrix", "binary_matrix", "number_sorting", "bitwise_arithmetic"),
)
"""Data sets whose scoring does."""
CODE = (
    "__import__('os').system('touch {}')",
    "__import__('os').system('touch {}')!",
    "x + __import__('os').system('touch {}')",
    "(lambda: open('{}', 'w'))()",
    "open('{}', 'w')",
    "[open(name, 'w') for name in ['{}']]",
    "().__class__.__base__.__subclasses__()",
    "Symbol('x').__class__",
    "preview('x')",
    'S(\'open("{}", "w")\')',
)


def row_of(name: str) -> dict[str, Any]:
    return reasoning_gym.create_dataset(name, size=1, seed=1)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", EVALUATED)
def test_code_is_not_executed_and_answers_score_as_before(name: str, tmp_path: Path) -> None:
    row, mark = row_of(name), tmp_path / "mark"
    for code in CODE:
        assert score(f"<answer>{code.format(mark)}</answer>", **row) < 1
        assert not mark.exists()
    assert score(f"<answer>{row['answer']}</answer>", **row) == get_score_answer_fn(name)(str(row["answer"]), row)


def test_these_data_sets_do_execute_it_otherwise(tmp_path: Path) -> None:
    """If not, the test above says nothing."""
    mark = tmp_path / "mark"
    get_score_answer_fn("countdown")(CODE[0].format(mark), row_of("countdown"))
    assert mark.exists()


@pytest.mark.parametrize(
    "formula", ["1 + 2 * 3", "-(4 / 2) ** 2", "[1, 'a', (2.5, None)]", "{'a': 1}", "0x1f ^ 0b1", "True and 1 < 2"]
)
def test_formulas_and_literals_are(formula: str) -> None:
    expected = eval(formula)
    with formulas_only():
        assert eval(formula) == expected


@pytest.mark.parametrize(
    "code", ["a.b", "f(1)(2)", "x[0]", "f'{1}'", "1 if 2 else 3", "yield", "(" * 500, "1" * 20_000]
)
def test_all_else_is_refused(code: str) -> None:
    with formulas_only(), pytest.raises(Refused):
        eval(code)
