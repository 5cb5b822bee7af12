"""Rewards for length and form, by numbers worked out by hand."""

import math
from pathlib import Path

import pytest

from asyncrl.errors import UserError
from asyncrl.rewards.load import load
from asyncrl.rewards.score import RewardRequest
from asyncrl.rewards.shaping import Cosine, matches, soft_overlong


@pytest.mark.parametrize(("num_tokens", "reward"), [(0, 0.0), (6, 0.0), (7, -0.25), (8, -0.5), (10, -1.0), (99, -1.0)])
def test_soft_overlong_is_dapos(num_tokens: int, reward: float) -> None:
    assert soft_overlong("", [1] * num_tokens, max_tokens=10, buffer_tokens=4) == reward


def test_a_buffer_that_is_longer_than_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="buffer_tokens 11 must be from 1 to max_tokens 10"):
        soft_overlong("", [], max_tokens=10, buffer_tokens=11)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a\nb</think> <answer>4</answer>", 1.0),
        ("\n<think></think><answer></answer>\n", 1.0),
        ("<think>a</think> 4", 0.0),
        ("well, <think>a</think><answer>4</answer>", 0.0),
    ],
)
def test_a_form_is_that_of_the_whole_completion(text: str, reward: float) -> None:
    assert matches(text, r"<think>.*</think>\s*<answer>.*</answer>") == reward


def test_cosine_prefers_short_right_answers_and_long_wrong_ones() -> None:
    cosine = Cosine(max_tokens=100)
    halfway = 1 + (2 - 1) / 2 * (1 + math.cos(math.pi / 4))
    for num_tokens, right, wrong in ((0, 2.0, -10.0), (25, halfway, None), (50, 1.5, -5.0), (100, -10.0, -10.0)):
        for answer, expected in (("4", right), ("5", wrong)):
            found = cosine("it is 4", [1] * num_tokens, answer=answer)
            assert found["accuracy"] == float(answer == "4")
            if expected is not None:
                assert found["reward"] == pytest.approx(expected)


def test_a_judge_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match="judge 'nowhere:f' does not import"):
        Cosine(max_tokens=100, judge="nowhere:f")


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("soft_overlong", {"max_tokens": 4, "buffer_tokens": 2}, -0.5),
        ("matches", {"pattern": "it is .*"}, 1.0),
        ("Cosine", {"max_tokens": 6}, 1.5),
    ],
)
def test_a_recipe_can_name_them(name: str, kwargs: dict, expected: float, tmp_path: Path) -> None:
    function = load(f"asyncrl.rewards.shaping:{name}", tmp_path, kwargs=kwargs)
    function.check_columns(["prompt", "answer"])
    (score,) = function.score(RewardRequest("p", ["it is 4"], [[1, 2, 3]], ["stop"], {"prompt": "p", "answer": "4"}))
    assert (score.reward, score.error) == (expected, None)
