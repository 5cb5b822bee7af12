from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.rewards.score import RewardRequest, Score, failed, to_score


@given(st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), st.booleans()))
def test_numbers_are_rewards(value):
    assert to_score(value) == Score(float(value))
    assert to_score({"reward": value}) == to_score({"score": value}) == Score(float(value))


@pytest.mark.parametrize(
    ("value", "reward"),
    [(np.float32(0.5), 0.5), (np.bool_(True), 1.0), (np.int64(3), 3.0), (Fraction(1, 4), 0.25), (True, 1.0)],
)
def test_number_likes_are_rewards(value, reward):
    assert to_score(value) == Score(reward)


@pytest.mark.parametrize(
    "value", [None, float("nan"), float("inf"), "1.0", [1.0], 10**400, np.ones(2), {}, {"acc": 1}, {"score": None}]
)
def test_anything_else_has_failed_and_says_why(value):
    score = to_score(value)
    assert score.reward is None
    assert score.error


def test_the_other_numbers_of_a_dict_are_extras():
    value = {"score": 0.5, "acc": True, "length": np.int32(7), "pred": "42", "bad": float("nan"), "none": None}
    assert to_score(value) == Score(0.5, {"acc": 1.0, "length": 7.0}, notes={"pred": "42", "bad": "nan"})
    assert to_score({**value, "reward": 2}).extras == {"score": 0.5, "acc": 1.0, "length": 7.0}
    assert to_score({"reward": None, "acc": 1}).extras == {"acc": 1.0}


@pytest.mark.parametrize("name", ["accuracy", "acc"])
def test_an_accuracy_is_a_number(name):
    assert to_score({"reward": 1.0, name: "yes"}).error == f"'{name}' is yes, not a finite number"
    assert to_score({"reward": 1.0, name: None}).error is None


@pytest.mark.parametrize("name", ["mean", "std"])
def test_an_extra_cannot_take_the_place_of_a_figure_of_the_records(name):
    score = to_score({"score": 1.0, name: 0.5})
    assert score.reward is None
    assert f"'{name}'" in score.error


def test_errors_are_short():
    assert len(failed("x" * 10_000).error) == 500


def test_what_utf8_cannot_hold_is_escaped():
    score = Score(1.0, {"a\ud83d": 1.0}, "b\ud83d", {"c\ud83d": "d\ud83d 😀"})
    assert score == Score(1.0, {"a\\ud83d": 1.0}, "b\\ud83d", {"c\\ud83d": "d\\ud83d 😀"})


def test_split_keeps_each_completion_with_its_ids():
    request = RewardRequest("p", ["a", "b"], [[1], [2, 3]], ["stop", "length"], {"answer": "c"})
    parts = request.split()
    assert [(p.completions, p.completion_ids, p.finish_reasons) for p in parts] == [
        (["a"], [[1]], ["stop"]),
        (["b"], [[2, 3]], ["length"]),
    ]
    assert all(p.prompt == "p" and p.row == {"answer": "c"} for p in parts)
