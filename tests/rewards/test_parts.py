"""The weighted sum of several rewards: TRL's `reward_funcs` and `reward_weights`."""

import asyncio

import pytest

from asyncrl.rewards.parts import Part, combined, of_source
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.score import RewardRequest, Score, failed, to_score
from asyncrl.verdicts import accuracy

RIGHT, SHORT = Part("m:right", "right"), Part("m:short", "short", 0.5)


def summed(*values, parts=(RIGHT, SHORT)):
    """Of one completion, of which each part says one value."""
    (score,) = combined(parts, [[value if isinstance(value, Score) else to_score(value)] for value in values])
    return score


def test_the_reward_is_the_weighted_sum_and_each_part_is_kept():
    score = summed(1.0, -0.5)
    assert (score.reward, score.error) == (0.75, None)
    assert score.extras == {"right": 1.0, "short": -0.5, "accuracy": 1.0, "judged": 1.0}


def test_a_part_that_returned_none_has_no_say():
    assert summed(None, -0.5).reward == -0.25
    assert summed(1.0, {"reward": None, "seen": 3}).extras == {
        **{"right": 1.0, "short/seen": 3.0},
        **{"accuracy": 1.0, "judged": 1.0},
    }


def test_if_no_part_has_a_say_there_is_no_reward_and_no_zero():
    score = summed(None, None)
    assert score.reward is None
    assert score.error == "no part of the reward has a say: all returned None"


def test_a_part_that_fails_is_named_and_there_is_no_reward():
    score = summed(1.0, failed("KeyError: 'x'"))
    assert (score.reward, score.error) == (None, "short: KeyError: 'x'")
    assert summed(float("nan"), 1.0).error == "right: the reward is nan, not a finite number"


def test_what_is_right_is_said_by_a_part_or_else_by_the_first():
    assert summed(0.25, {"score": 1.0, "accuracy": 1.0}).extras["accuracy"] == 1.0
    assert summed(0.25, 1.0).extras["accuracy"] == 0.0


def accuracy_of(completions, *parts):
    """Of the completions of one group: what each part says of each."""
    scores = combined(parts, [[to_score(value) for value in values] for values in zip(*completions, strict=True)])
    return accuracy([score.reward for score in scores], [score.extras for score in scores])


def test_a_completion_that_the_judging_part_has_no_say_in_counts_neither_way():
    """As TRL logs a part: the mean of what is not None. The sum, which here is 1 for the third, is not asked."""
    assert accuracy_of([(1.0, 0.0), (0.0, 1.0), (None, 2.0)], RIGHT, SHORT) == 0.5
    assert accuracy_of([(None, 2.0), (None, 0.0)], RIGHT, SHORT) is None
    assert [summed(None, 2.0).extras["judged"], summed(0.0, 2.0).extras["judged"]] == [0.0, 1.0]


def test_a_part_of_weight_0_is_only_logged_and_judges_nothing():
    logged = Part("m:seen", "seen", 0.0)
    assert accuracy_of([(1.0, 0.0), (1.0, 1.0)], logged, RIGHT) == 0.5
    assert accuracy_of([({"reward": 1.0, "accuracy": 1.0}, 0.0), (1.0, 0.0)], logged, RIGHT) == 0.0
    assert summed({"reward": 1.0, "acc": 1.0}, 0.0, parts=(logged, RIGHT)).extras["seen/acc"] == 1.0
    assert accuracy_of([(1.0,), (0.0,)], logged) == 0.5, "where there is nothing else"


def test_the_parts_that_judge_can_be_named():
    """TRL's example of several tasks: each function returns None for the tasks of the other."""
    math, code = Part("m:math", "math", judges=True), Part("m:code", "code", judges=True)
    assert accuracy_of([(1.0, None), (0.0, None), (None, 1.0), (None, 1.0)], math, code) == 0.75
    strict = Part("m:strict", "strict", 0.0, judges=True)
    assert accuracy_of([(1.0, 0.0), (1.0, 1.0)], RIGHT, strict) == 0.5, "and may have weight 0"


def test_a_judging_part_that_gives_more_than_1_does_not_say_what_is_right():
    """2 for a right answer, as many recipes have it: once only the wrong ones counted, and accuracy was always 0."""
    assert accuracy_of([(2.0, 0.5), (0.0, 0.5)], RIGHT, SHORT) is None
    assert (
        accuracy_of([({"reward": 2.0, "accuracy": 1.0}, 0.5), ({"reward": 0.0, "accuracy": 0.0}, 0.5)], RIGHT, SHORT)
        == 0.5
    )


def test_other_extras_and_notes_are_called_after_their_part():
    first, second = ({"reward": 1.0, "length": n, "why": "so"} for n in (3, 4))
    score = summed(first, second)
    assert (score.extras["right/length"], score.extras["short/length"]) == (3.0, 4.0)
    assert score.notes == {"right/why": "so", "short/why": "so"}


def test_a_reward_of_one_function_is_as_it_was():
    score = Score(0.5, {"length": 3.0}, None, {"why": "so"})
    assert combined([Part("m:f")], [[score]]) == [score]
    assert to_score(None).reward is None
    assert to_score(None).error == "the reward is None, not a finite number"


def test_a_source_with_rewards_of_its_own_is_judged_by_them_alone():
    parts = [Part("m:f"), Part("m:g", source="b"), Part("m:h", "h", source="c"), Part("m:i", "i", source="c")]
    assert [of_source(parts, source) for source in ("", "a", "b", "c")] == [[0], [0], [1], [2, 3]]


REWARDS = """
import threading, time

def plain(completion, answer, **row):
    if completion == "slow":
        time.sleep(1000)
    if completion == "raise":
        raise RuntimeError("on purpose")
    return 1.0 if completion == answer else 0.0

def one_for_all(prompts, completions, **columns):
    return [1.0]

def some(prompts, completions, **columns):
    return [0.5 if completion != "none" else None for completion in completions]

def verl(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": 2.0 if data_source == "sums" else 3.0, "acc": 1.0}

def threaded(completion, **row):
    # As verl's graders with a signal for a time-out: which works in a main thread alone, and may not pass for a 0.
    import signal
    signal.signal(signal.SIGALRM, lambda *_: None)
    return 1.0
"""


@pytest.fixture
def score(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)

    def scored(parts, *completions, timeout_s=30.0, source="", **row):
        named = [Part(f"./rewards.py:{name}", name, *rest) for name, *rest in parts]
        named += [Part("./rewards.py:verl", dataset="sums", source="own")]
        pool = RewardPool(named, tmp_path, 1, timeout_s)
        number = len(completions)
        request = RewardRequest(
            "p", list(completions), [[1]] * number, ["stop"] * number, {"answer": "a", **row}, source=source
        )
        try:
            return asyncio.run(pool.score(request))
        finally:
            pool.close()

    return scored


def test_parts_of_all_signatures_in_processes(score):
    """A function for one completion, one of TRL's and one of verl's."""
    right, wrong, undecided = score([("plain",), ("some", 2.0), ("verl", 0.1)], "a", "b", "none")
    assert [s.reward for s in (right, wrong, undecided)] == pytest.approx([2.3, 1.3, 0.3])
    assert right.extras == {"plain": 1.0, "some": 0.5, "verl": 3.0, "acc": 1.0, "judged": 1.0}
    assert "some" not in undecided.extras


def test_a_part_that_hangs_or_raises_is_named_and_the_others_go_on(score):
    slow, right, broken = score([("some",), ("plain",)], "slow", "a", "raise", timeout_s=0.5)
    assert slow.error == "plain: timed out after 0.5 s"
    assert right.reward == 1.5
    assert broken.error.startswith("plain: RuntimeError: on purpose")
    assert (slow.reward, broken.reward, slow.extras) == (None, None, {"some": 0.5, "accuracy": 0.0, "judged": 1.0})


def test_a_list_of_one_reward_is_not_spread_over_the_group(score):
    found = score([("plain",), ("one_for_all",)], "a", "b", "c", "d")
    assert {s.error for s in found} == {"one_for_all: one_for_all returned 1 rewards for 4 completions"}
    assert {s.reward for s in found} == {None}


def test_the_tasks_of_a_source_have_its_reward(score):
    (own,) = score([("plain",)], "a", source="own", data_source="sums")
    assert (own.reward, own.extras) == (2.0, {"acc": 1.0})
    assert score([("plain",)], "a", source="other")[0].reward == 1.0


def test_a_grader_with_a_signal_is_called_in_a_main_thread(score):
    assert score([("threaded",), ("plain",)], "a")[0].reward == 2.0
