import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.rewards.math import exact_match, last_number, math_verify, reasoning_gym


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("12 and then 7.", 7),
        ("it is 1,234", "1234"),
        ("it is 1234", "1,234"),
        ("x = -4", "-4"),
        ("x = \N{MINUS SIGN}4.", -4),
        ("3.0", 3),
        ("3", "3.0"),
        (".5", 0.5),
        ("10-4", "4"),
        ("1,2,3", 3),
        ("**42**", "some reasoning 41 #### 42"),
    ],
)
def test_last_number_right(completion, answer):
    assert last_number(completion, answer, question="?") == 1.0


@pytest.mark.parametrize(("completion", "answer"), [("7 8", 7), ("no number", 7), ("", 0), ("4", -4), ("7.5", 7)])
def test_last_number_wrong_is_zero_and_no_failure(completion, answer):
    assert last_number(completion, answer) == 0.0


def test_an_answer_without_a_number_is_a_failure():
    with pytest.raises(ValueError, match="no number in the answer 'none'"):
        last_number("1", "none")


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_last_number_takes_the_last(first, last):
    text = f"first {first:,} and then {last:,}."
    assert last_number(text, last) == 1.0
    assert last_number(text, first) == float(first == last)


def test_exact_match_ignores_white_space_around():
    assert exact_match(" yes\n", "yes") == 1.0
    assert exact_match("Yes", "yes") == 0.0


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("so it is 42", "some reasoning\n#### 42", 1.0),
        ("so it is 1,234", "1234", 1.0),
        (r"thus \boxed{\frac{1}{2}}", "0.5", 1.0),
        (r"$x^2+2x+1$", "(x+1)^2", 1.0),
        (r"$x^2+2x+1$", "$(x+1)^2$", 1.0),
        (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", 1.0),
        (r"\boxed{B}", "B", 1.0),
        ("41", 42, 0.0),
        ("I do not know", 42, 0.0),
    ],
)
def test_math_verify(completion, answer, reward):
    assert math_verify(completion, answer, question="?") == reward


def test_math_verify_without_a_gold_is_a_failure():
    with pytest.raises(ValueError, match="cannot read the answer"):
        math_verify("1", "")


def test_reasoning_gym_scores_by_the_rows_data_set():
    from reasoning_gym import create_dataset

    row = create_dataset("chain_sum", size=1, seed=1)[0]
    assert reasoning_gym(f" {row['answer']}\n", **row) == 1.0
    assert reasoning_gym(f"<answer>0</answer> no: <answer>{row['answer']}</answer>, or 0?", **row) == 1.0
    assert reasoning_gym("<answer>nonsense</answer>", **row) < 0.5


def test_importing_the_built_ins_imports_nothing_heavy():
    heavy = {"math_verify", "reasoning_gym", "sympy", "numpy", "torch", "pydantic"}
    code = f"import asyncrl.rewards.math, asyncrl.rewards.worker, sys; sys.exit(str(set(sys.modules) & {heavy!r}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == "set()"
