"""Data sets of verl and TRL as they come: parquet files of pandas and pyarrow, built here."""

import numpy as np
import pandas
import pyarrow
import pytest
from pyarrow import parquet

from asyncrl.data.source import load_rows
from asyncrl.data.tasks import TaskSource
from asyncrl.recipe.data import DataRecipe
from asyncrl.rewards.function import recognise
from asyncrl.rewards.score import RewardRequest

CHAT = [{"role": "system", "content": "Think first."}, {"role": "user", "content": "What is 2 + 3?"}]


def tasks_of(path, **keys):
    recipe = DataRecipe(path=str(path), shuffle=False, **keys)
    tasks = TaskSource(load_rows(recipe, seed=0), recipe, seed=0)
    tasks.check_prompts()
    return tasks


def rewards(function, task, *completions):
    number = len(completions)
    known = recognise(function, "m:f", "unnamed")
    known.check_columns(task.row)
    request = RewardRequest(task.prompt, list(completions), [[1]] * number, ["stop"] * number, task.row)
    return [(score.reward, score.error) for score in known.score(request)]


@pytest.fixture
def verls(tmp_path):
    """As verl's examples/data_preprocess write it, with what pandas makes of lists: arrays of objects."""
    rows = [
        {
            "data_source": "openai/gsm8k",
            "prompt": np.array(CHAT, dtype=object),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "5"},
            "extra_info": {"split": "train", "index": np.int64(0), "answer": "2 + 3 = 5 #### 5"},
        },
        {
            "data_source": "code",
            "prompt": np.array([{"role": "user", "content": "Print 1."}], dtype=object),
            "ability": "code",
            "reward_model": {"style": "rule", "ground_truth": "1"},
            "extra_info": {"split": "train", "index": np.int64(1), "tests": np.array(["a", "b"], dtype=object)},
        },
    ]
    pandas.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    return tmp_path / "train.parquet"


def test_a_parquet_file_of_verl_as_it_comes(verls):
    tasks = tasks_of(verls)
    first, second = tasks.task(0), tasks.task(1)
    assert tasks.column == "prompt"
    assert first.prompt == CHAT
    assert second.prompt == [{"role": "user", "content": "Print 1."}]
    assert second.row["extra_info"]["tests"] == ["a", "b"]
    assert type(first.row["extra_info"]["index"]) is int


def test_functions_of_verl_get_what_verl_gives_them(verls):
    seen = []

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        seen.append((data_source, ground_truth, extra_info["index"]))
        return {"score": float(solution_str == ground_truth), "acc": solution_str == ground_truth}

    tasks = tasks_of(verls)
    assert rewards(compute_score, tasks.task(0), "5", "6") == [(1.0, None), (0.0, None)]
    assert rewards(compute_score, tasks.task(1), "1") == [(1.0, None)]
    assert seen == [("openai/gsm8k", "5", 0), ("openai/gsm8k", "5", 0), ("code", "1", 1)]


def test_gold_that_is_a_list_or_a_number_stays_so(tmp_path):
    rows = [
        {"prompt": CHAT, "reward_model": {"ground_truth": {"target": 24, "numbers": [4, 6]}}},
        {"prompt": CHAT, "reward_model": {"ground_truth": {"target": 7, "numbers": [3, 2, 2]}}},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "countdown.parquet")

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        return float(ground_truth["target"] == 24 and ground_truth["numbers"] == [4, 6] and extra_info == {})

    tasks = tasks_of(tmp_path / "countdown.parquet")
    assert [rewards(compute_score, tasks.task(n), "x")[0][0] for n in (0, 1)] == [1.0, 0.0]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_conversational_rows_of_trl(tmp_path, suffix):
    """Prompt-only, and with the completion that SFT trains, which a reward does not get for the model's."""
    rows = [{"prompt": CHAT, "completion": [{"role": "assistant", "content": "5"}], "solution": "5"}]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pandas.DataFrame(rows).to_parquet(path)
    else:
        pandas.DataFrame(rows).to_json(path, orient="records", lines=True)

    def accuracy_reward(completions, solution, **kwargs):
        assert "completion" not in kwargs
        assert kwargs["prompts"][0] == CHAT
        return [float(c[0]["content"] == s) for c, s in zip(completions, solution, strict=True)]

    task = tasks_of(path).task(0)
    assert task.prompt == CHAT
    assert rewards(accuracy_reward, task, "5", "4") == [(1.0, None), (0.0, None)]
