import asyncio
import functools
import sys

import numpy as np
import pytest
import torch

from asyncrl.errors import UserError
from asyncrl.rewards.function import Style, recognise
from asyncrl.rewards.score import RewardRequest, Score, TrainerState

ROW = {"question": "2+2?", "answer": "4", "prompt": "raw"}
CHAT = [{"role": "user", "content": "2+2?"}]
STATE = TrainerState(global_step=7, max_steps=20, epoch=0.5)


def score(function, *, prompt="2+2?", completions=("4", "5"), row=ROW, dataset="my/data", kwargs=None):
    ids = [[ord(c) for c in text] for text in completions]
    reasons = ["stop", "length", *["stop"] * len(completions)][: len(completions)]
    request = RewardRequest(prompt, list(completions), ids, reasons, row, STATE)
    return recognise(function, "m:f", dataset, kwargs).score(request)


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
    assert seen.pop("trainer_state") is STATE
    assert callable(seen.pop("log_extra"))
    assert callable(seen.pop("log_metric"))
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
        (lambda completions, *, trainer_state, log_extra, log_metric, finish_reason: 0, Style.TRL, []),
        (lambda completion_ids, **kwargs: 0, Style.TRL, []),
        (lambda completions, environments, **kwargs: 0, Style.TRL, ["environments"]),
        (lambda data_source, solution_str, ground_truth, extra_info=None: 0, Style.VERL, []),
        (lambda data_sources, solution_strs, ground_truths, extra_infos, strict=False: 0, Style.VERL_BATCH, []),
    ],
)
def test_styles_and_required_columns(function, style, columns):
    found = recognise(function, "m:f", "")
    assert found.style is style
    assert found.required_columns == columns
    assert found.per_group == (style in (Style.TRL, Style.VERL_BATCH))


def test_missing_columns_are_reported_before_anything_starts():
    found = recognise(lambda completion, answer: 0, "m:f", "")
    found.check_columns(["question", "answer"])
    with pytest.raises(UserError, match=r"^reward 'm:f' needs column 'answer', the data set has: question, gold; take"):
        found.check_columns(["question", "gold"])
    verl = recognise(lambda data_source, solution_str, ground_truth, extra_info=None: 0, "m:f", "")
    verl.check_columns(["prompt", "reward_model"])
    verl.check_columns(["prompt", "answer"])
    with pytest.raises(UserError, match="needs column 'answer'"):
        verl.check_columns(["prompt"])


# -- functions as the documentation of TRL and of verl has them, by their signatures


def test_trl_reward_of_the_ids_alone():
    def reward_func(completion_ids, **kwargs):
        return [float(len(ids)) for ids in completion_ids]

    assert rewards(reward_func, completions=["ab", "c"]) == [2.0, 1.0]


def test_trl_reward_of_the_format_of_chats():
    def format_reward_func(completions, **kwargs):
        contents = [completion[0]["content"] for completion in completions]
        return [1.0 if content.startswith("<think>") else 0.0 for content in contents]

    assert rewards(format_reward_func, prompt=CHAT, completions=["<think>", "no"]) == [1.0, 0.0]


def test_trl_prompts_of_chats_are_their_messages():
    assert rewards(lambda prompts, completions: [p == CHAT for p in prompts], prompt=CHAT) == [1.0, 1.0]


def test_trl_reward_that_logs():
    def reward_func(completions, answer, log_extra=None, log_metric=None, **kwargs):
        found = [float(c == a) for c, a in zip(completions, answer, strict=True)]
        log_extra("golden_answer", list(answer))
        log_extra("right", found)
        log_metric("accuracy", sum(found) / len(found))
        log_metric("characters", 1)
        log_metric("characters", 2)
        return found

    figures = {"accuracy": 0.5, "characters": 1.5}
    assert score(reward_func) == [
        Score(1.0, {**figures, "right": 1.0}, notes={"golden_answer": "4"}),
        Score(0.0, {**figures, "right": 0.0}, notes={"golden_answer": "4"}),
    ]


def test_trl_state_drives_a_curriculum():
    def reward_func(completions, trainer_state, **kwargs):
        progress = trainer_state.global_step / trainer_state.max_steps
        return [progress + trainer_state.epoch for _ in completions]

    assert rewards(reward_func) == [0.85, 0.85]
    (asked, _) = score(lambda completions, trainer_state: [trainer_state.log_history for _ in completions])
    assert "trainer_state has no 'log_history' here, only global_step, max_steps, epoch" in asked.error


def test_a_column_that_was_logged_with_too_few_values_is_nobodys():
    def reward_func(completions, log_extra):
        log_extra("extracted", ["one"])
        return [1.0 for _ in completions]

    assert [s.error for s in score(reward_func)] == ["log_extra('extracted') was given 1 values for 2 completions"] * 2


@pytest.mark.parametrize("lists", [np.array, torch.tensor, tuple])
def test_arrays_are_lists(lists):
    def reward_func(completions, log_extra):
        log_extra("length", lists([len(c) for c in completions]))
        return lists([0.5, 1.0])

    assert score(reward_func, completions=["a", "bc"]) == [Score(0.5, {"length": 1.0}), Score(1.0, {"length": 2.0})]


@pytest.mark.parametrize(
    "value", [np.array(3), np.array([3, 4]), {"a": 1}, pytest.param(10**5000, id="huge"), "half \ud83d"]
)
def test_one_completion_may_log_anything(value):
    def reward(completion, log_extra):
        log_extra("found", value)
        return 1

    found = score(reward, completions=["4"])[0]
    assert (found.reward, found.error) == (1.0, None)
    assert found.extras == {"found": 3.0} or found.notes["found"].encode()


@pytest.mark.parametrize(
    "value", [{0: 1.0, 1: 2.0}, {1.0, 2.0}, frozenset((1.0, 2.0)), b"12", "12", {0: 0, 1: 1}.keys()]
)
def test_what_has_no_order_or_is_text_is_no_list_of_rewards(value):
    (first, _) = score(lambda completions: value)
    assert first.reward is None
    assert first.error.endswith(f" returned {type(value).__name__} for 2 completions; return a list, a reward each")


class Mute(Exception):
    def __str__(self):
        raise OSError


def mute(value):
    raise Mute(value)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda completion: 10**5000, "the reward is int without a text (ValueError), not a finite number"),
        (lambda completion: {"score": 10**5000}, "the reward is int without a text"),
        (lambda completions: [10**5000, 1], "the reward is int without a text"),
        (lambda completion: {10**5000: 1}, "the dict returned has neither 'reward' nor 'score', only int without"),
        (lambda completion: mute(completion), "Mute: Mute without a text (OSError)"),
        (lambda completion: int("\ud83d"), "invalid literal for int() with base 10: '\\ud83d'"),
    ],
)
def test_a_reason_is_given_whatever_there_is_to_say(function, reason):
    first = score(function)[0]
    assert first.reward is None
    assert reason in first.error
    assert first.error.encode()


@pytest.mark.parametrize("log", ["log_extra", "log_metric"])
def test_a_log_cannot_take_the_place_of_a_figure_of_the_records(log):
    (first, _) = score(lambda completions, **kwargs: [kwargs[log]("mean", [1.0, 1.0]) for _ in completions])
    assert first.reward is None
    assert "'mean' cannot be logged" in first.error


def test_any_signature_may_ask_for_more():
    def reward(completion, finish_reason, completion_ids, trainer_state, log_metric, **row):
        assert sorted(row) == ["answer", "prompt", "question"]
        log_metric("step", trainer_state.global_step)
        return len(completion_ids) + 10 * (finish_reason == "length")

    def compute_score(data_source, solution_str, ground_truth, extra_info, finish_reason):
        return finish_reason == "stop"

    def reward_func(completions, finish_reason, **columns):
        return [reason == "stop" for reason in finish_reason]

    assert score(reward) == [Score(1.0, {"step": 7.0}), Score(11.0, {"step": 7.0})]
    assert rewards(compute_score) == rewards(reward_func) == [1.0, 0.0]


def test_verl_batch_manager_gets_plurals():
    seen = []

    def compute_score(data_sources, solution_strs, ground_truths, extra_infos, **kwargs):
        seen.append((data_sources, solution_strs, ground_truths, extra_infos, kwargs))
        extra_infos[0]["written"] = True
        return [{"score": float(s == g), "acc": s == g} for s, g in zip(solution_strs, ground_truths, strict=True)]

    row = {"reward_model": {"ground_truth": "5"}, "extra_info": {"index": 3}}
    expected = [Score(0.0, {"acc": 0.0}), Score(1.0, {"acc": 1.0})]
    assert score(compute_score, row=row, kwargs={"strict": True}) == expected
    data = (["my/data"] * 2, ["4", "5"], ["5", "5"], [{"index": 3, "written": True}, {"index": 3}], {"strict": True})
    assert seen == [data]
    assert row["extra_info"] == {"index": 3}


def test_verl_without_extra_info_gets_an_empty_one():
    assert rewards(lambda solution_str, extra_info: extra_info == {}) == [1.0, 1.0]


def test_the_gold_may_be_a_column():
    assert rewards(lambda solution_str, ground_truth: ground_truth == "6", row={"ground_truth": "6"}) == [1.0, 1.0]


def test_arguments_of_the_recipe_come_before_columns():
    def compute_score(data_source, solution_str, ground_truth, extra_info=None, answer=None, scale=1.0):
        return scale * (answer == "own")

    assert rewards(compute_score, kwargs={"scale": 3.0, "answer": "own"}) == [3.0, 3.0]
    assert rewards(lambda completion, **row: row["scale"], kwargs={"scale": 2}) == [2.0, 2.0]
    found = recognise(lambda completion, scale: 0, "m:f", "", {"scale": 1})
    assert found.required_columns == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scael": 1}, r"^rewards.kwargs.scael: reward 'm:f' has no parameter 'scael', only completion, scale$"),
        ({"completion": 1}, r"^rewards.kwargs.completion: reward 'm:f' gets 'completion' from asyncrl; rename it$"),
        ({"finish_reason": 1}, r"gets 'finish_reason' from asyncrl"),
    ],
)
def test_arguments_of_the_recipe_that_do_not_fit(kwargs, message):
    with pytest.raises(UserError, match=message):
        recognise(lambda completion, scale=1: 0, "m:f", "", kwargs)


@pytest.mark.parametrize("name", ["environments", "reward_router_address"])
def test_what_only_others_have_is_no_missing_column(name):
    found = recognise(eval(f"lambda completions, {name}, **kwargs: 0"), "m:f", "")
    with pytest.raises(
        UserError, match=rf"reward 'm:f' takes '{name}', which only .* has; give the parameter a default"
    ):
        found.check_columns(["prompt"])


def test_a_column_cannot_have_the_name_of_an_argument_that_is_asked_for():
    found = recognise(lambda completion, finish_reason, **row: 0, "m:f", "")
    found.check_columns(["prompt", "completion_ids"])
    with pytest.raises(UserError, match="reward 'm:f' names 'finish_reason', which asyncrl gives it"):
        found.check_columns(["prompt", "finish_reason"])
    recognise(lambda completion, **row: 0, "m:f", "").check_columns(["prompt", "finish_reason"])


# -- things that can be called


class Scorer:
    """Compares with what it was made with."""

    made = 0

    def __init__(self, right="4", scale=1.0):
        self.right, self.scale = right, scale
        type(self).made += 1

    def __call__(self, completion, **row):
        return self.scale * (completion == self.right)

    async def later(self, completion, **row):
        return self(completion)


def test_instances_methods_and_partials():
    assert rewards(Scorer("5")) == rewards(Scorer("5").later) == [0.0, 1.0]

    def graded(completion, answer, scale, **row):
        return scale * (completion == answer)

    assert rewards(functools.partial(graded, scale=2.0)) == [2.0, 0.0]
    assert recognise(functools.partial(graded, scale=2.0), "m:f", "").required_columns == ["answer"]


def test_a_class_is_instantiated_once():
    before = Scorer.made
    assert rewards(Scorer, kwargs={"right": "5", "scale": 3.0}) == [0.0, 3.0]
    assert Scorer.made == before + 1


def test_classes_that_do_not_fit():
    class Broken(Scorer):
        def __init__(self):
            raise OSError("no model here")

    class Data:
        pass

    with pytest.raises(
        UserError, match=r"^rewards.kwargs.wrong: reward 'm:f' has no parameter 'wrong', only right, scale"
    ):
        recognise(Scorer, "m:f", "", {"wrong": 1})
    with pytest.raises(UserError, match=r"^reward 'm:f' is a class whose instances cannot be called"):
        recognise(Data, "m:f", "")
    with pytest.raises(UserError, match=r"^reward 'm:f' cannot be instantiated: OSError: no model here"):
        _ = recognise(Broken, "m:f", "").ready
