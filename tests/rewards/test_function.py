import asyncio
import sys

import pytest

from asyncrl.errors import UserError
from asyncrl.rewards.function import Style, recognise
from asyncrl.rewards.score import RewardRequest, Score

ROW = {"question": "2+2?", "answer": "4", "prompt": "raw"}
CHAT = [{"role": "user", "content": "2+2?"}]


def score(function, *, prompt="2+2?", completions=("4", "5"), row=ROW, dataset="my/data"):
    ids = [[ord(c) for c in text] for text in completions]
    return recognise(function, "m:f", dataset).score(RewardRequest(prompt, list(completions), ids, row))


def rewards(function, **kwargs):
    return [s.reward for s in score(function, **kwargs)]


def test_per_trajectory_gets_columns_and_prompt():
    def named(completion, answer, prompt, missing="default"):
        assert (prompt, missing) == ("2+2?", "default")
        return completion == answer

    def open_ended(completion, **row):
        assert row == {"question": "2+2?", "answer": "4", "prompt": "2+2?"}
        return completion == row["answer"]

    assert rewards(named) == [1.0, 0.0]
    assert rewards(open_ended) == [1.0, 0.0]


def test_trl_gets_lists_of_everything_but_the_prompt_column():
    seen = {}

    def reward(prompts, completions, **columns):
        seen.update(prompts=prompts, completions=completions, **columns)
        return [1.0, None]

    assert score(reward)[0] == Score(1.0)
    assert score(reward)[1].reward is None
    assert seen == {
        "prompts": ["2+2?"] * 2,
        "completions": ["4", "5"],
        "completion_ids": [[52], [53]],
        "question": ["2+2?"] * 2,
        "answer": ["4"] * 2,
    }


def test_trl_with_chat_prompts_gets_chat_completions():
    def reward(*, completions, answer):
        return [c == [{"role": "assistant", "content": a}] for c, a in zip(completions, answer, strict=True)]

    assert rewards(reward, prompt=CHAT) == [1.0, 0.0]


@pytest.mark.parametrize("value", [[1.0], None, [1.0, 2.0, 3.0], 0.5])
def test_trl_with_a_wrong_number_of_rewards_fails_all(value):
    assert rewards(lambda completions: value) == [None, None]


def test_verl_finds_its_gold():
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        assert data_source == "my/data"
        return {"score": solution_str == ground_truth, "acc": 1}

    assert score(compute_score) == [Score(1.0, {"acc": 1.0}), Score(0.0, {"acc": 1.0})]
    assert rewards(compute_score, row={"reward_model": {"ground_truth": "5", "style": "rule"}}) == [0.0, 1.0]


def test_verl_prefers_the_rows_own_source():
    def compute_score(data_source, solution_str, ground_truth, extra_info, **config):
        assert config == {}
        return data_source == "row/source" and extra_info == {"index": 3}

    row = {**ROW, "data_source": "row/source", "extra_info": {"index": 3}}
    assert rewards(compute_score, row=row) == [1.0, 1.0]


def test_async_functions_share_one_event_loop():
    loops = []

    async def one(completion, answer):
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return completion == answer

    async def group(completions, **columns):
        loops.append(asyncio.get_running_loop())
        return [0.5 for _ in completions]

    assert rewards(one) == [1.0, 0.0]
    assert rewards(group) == [0.5, 0.5]
    assert len(loops) == 3
    assert len(set(map(id, loops))) == 1


def test_an_error_fails_its_completion_only_and_is_named():
    def reward(completion, answer):
        if completion == "5":
            raise KeyError("gold")
        if completion == "6":
            sys.exit("enough")
        return 1

    good, bad, gone = score(reward, completions=["4", "5", "6"])
    assert good == Score(1.0)
    assert (bad.reward, gone.reward) == (None, None)
    assert bad.error.startswith("KeyError: 'gold' (test_function.py:")
    assert gone.error.startswith("SystemExit: enough")


def test_an_error_in_a_group_call_fails_the_group():
    scores = score(lambda completions: 1 / 0)
    assert [s.reward for s in scores] == [None, None]
    assert all("ZeroDivisionError" in s.error for s in scores)


@pytest.mark.parametrize(
    ("function", "style", "columns"),
    [
        (lambda completion, **row: 0, Style.TRAJECTORY, []),
        (lambda completion, answer, prompt, hint=None: 0, Style.TRAJECTORY, ["answer"]),
        (lambda prompts, completions, answer, completion_ids, **kwargs: 0, Style.TRL, ["answer"]),
        (lambda completions, *, trainer_state: 0, Style.TRL, ["trainer_state"]),
        (lambda data_source, solution_str, ground_truth, extra_info=None: 0, Style.VERL, []),
    ],
)
def test_styles_and_required_columns(function, style, columns):
    found = recognise(function, "m:f", "")
    assert found.style is style
    assert found.required_columns == columns
    assert found.per_group == (style is Style.TRL)


def test_missing_columns_are_reported_before_anything_starts():
    found = recognise(lambda completion, answer: 0, "m:f", "")
    found.check_columns(["question", "answer"])
    with pytest.raises(UserError, match=r"^reward 'm:f' needs column 'answer', the data set has: question, gold$"):
        found.check_columns(["question", "gold"])
    verl = recognise(lambda data_source, solution_str, ground_truth, extra_info=None: 0, "m:f", "")
    verl.check_columns(["prompt", "reward_model"])
    verl.check_columns(["prompt", "answer"])
    with pytest.raises(UserError, match="needs column 'answer'"):
        verl.check_columns(["prompt"])
