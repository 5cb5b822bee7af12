"""The kinds of reward functions and of data that the documentation of TRL (GRPO) and of verl (data preparation, custom
reward functions) shows: each passes a dry run as it is, and gives in the processes what it gives there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from asyncrl.cli import main
from asyncrl.data.check import load_tasks
from asyncrl.recipe.load import load
from asyncrl.recipe.schema import Recipe
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.score import RewardRequest, Score, TrainerState
from asyncrl.verdicts import accuracy

ROOT = Path(__file__).resolve().parents[2]

TRL = r'''
import asyncio, re

def by_tokens(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

def by_characters(completions, **kwargs):
    return [float(len(text)) for text in completions]

def form(completions, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.fullmatch(r"<think>.*</think><answer>.*</answer>", text) else 0.0 for text in contents]

def reference(completions, ground_truth, **kwargs):
    found = [re.search(r"\\boxed\{(.*?)\}", text) for text in completions]
    return [1.0 if match and match[1] == gold else 0.0 for match, gold in zip(found, ground_truth)]

def of_math(prompts, completions, task, **kwargs):
    each = zip(prompts, completions, task)
    return [(1.0 if text == str(eval(asked)) else -1.0) if kind == "math" else None for asked, text, kind in each]

def of_code(prompts, completions, task, **kwargs):
    return [(1.0 if "def " in text else -1.0) if kind == "code" else None for text, kind in zip(completions, task)]

async def slow(prompts, completions, **kwargs):
    await asyncio.sleep(0.01)
    return [1.0 if text else 0.0 for text in completions]

def logging(completions, ground_truth, log_extra=None, log_metric=None, **kwargs):
    rewards = [1.0 if text == gold else 0.0 for text, gold in zip(completions, ground_truth)]
    if log_extra:
        log_extra("gold", list(ground_truth))
    if log_metric:
        log_metric("accuracy", sum(rewards) / len(rewards))
    return rewards

def with_progress(completions, trainer_state, **kwargs):
    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

def like_trl_accuracy(completions, solution, log_extra=None, **kwargs):
    """As trl.rewards.accuracy_reward: None where the solution cannot be read."""
    contents = [completion[0]["content"] for completion in completions]
    return [float(text == gold) if gold else None for text, gold in zip(contents, solution)]
'''

VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert (data_source, extra_info["split"]) == ("openai/gsm8k", "train")
    answer = solution_str.rpartition("#### ")[2]
    return 1.0 if answer == ground_truth else 0.1 if "#### " in solution_str else 0.0

def by_length(data_source, solution_str, ground_truth, extra_info=None):
    return len(solution_str) / 100

def with_more(data_source, solution_str, ground_truth, extra_info, scale=1.0, **kwargs):
    right = solution_str == ground_truth
    return {"score": scale * right, "acc": right, "pred": solution_str, "index": extra_info["index"]}
"""

CHAT = [{"role": "user", "content": "2+2"}]
TASKS = [{"prompt": "2+2", "task": "math"}, {"prompt": "Write a function.", "task": "code"}]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(TRL)
    Path("verl.py").write_text(VERL)
    return tmp_path


def scored(data: str, rewards: str, completions: list[str], row: int = 0, *keys: str) -> list[Score]:
    """The recipe passes a dry run; then its tasks and its rewards, in their processes."""
    arguments = [str(ROOT / "recipes/tiny.yaml"), f"data.path={data}", "data.options={}", f"reward={rewards}", *keys]
    assert main(["train", *arguments, "--dry-run"]) == 0
    recipe: Recipe = load(Path(arguments[0]), arguments[1:])
    task = next(t for draw in range(9) if (t := load_tasks(recipe, Path.cwd()).task(draw)).row_index == row)
    number = len(completions)
    pool = RewardPool(recipe.reward_parts, Path.cwd(), 1, 30.0)
    try:
        request = RewardRequest(
            task.prompt,
            completions,
            [[*text.encode()] for text in completions],
            ["stop"] * number,
            task.row,
            TrainerState(3, 6, 0.0),
        )
        return asyncio.run(pool.score(request))
    finally:
        pool.close()


def rows(*given: dict[str, Any]) -> str:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    return "rows.jsonl"


@pytest.mark.parametrize(
    ("reward", "row", "completions", "expected"),
    [
        ("by_tokens", {"prompt": "The sky is"}, [" blue.", " in the sky."], [6.0, 12.0]),
        ("by_characters", {"prompt": "The sky is"}, [" blue.", " in the sky."], [6.0, 12.0]),
        ("form", {"prompt": CHAT}, ["<think>a</think><answer>4</answer>", "4"], [1.0, 0.0]),
        ("reference", {"prompt": "2+2", "ground_truth": "4"}, [r"It is \boxed{4}.", r"\boxed{5}"], [1.0, 0.0]),
        ("slow", {"prompt": "2+2"}, ["a", ""], [1.0, 0.0]),
        ("logging", {"prompt": "2+2", "ground_truth": "4"}, ["4", "5"], [1.0, 0.0]),
        ("with_progress", {"prompt": "2+2"}, ["4", "5"], [0.5, 0.5]),
        ("like_trl_accuracy", {"prompt": CHAT, "solution": "4", "extra": [1]}, ["4", "5"], [1.0, 0.0]),
    ],
)
def test_a_function_for_trl(reward: str, row: Any, completions: list[str], expected: list[float]) -> None:
    found = scored(rows(row), f"./mine.py:{reward}", completions)
    assert [score.reward for score in found] == expected
    assert [score.error for score in found] == [None, None]


def test_what_a_function_for_trl_logs_is_kept() -> None:
    found = scored(rows({"prompt": "2+2", "ground_truth": "4"}), "./mine.py:logging", ["4", "5"])
    assert [score.extras for score in found] == [{"accuracy": 0.5}] * 2
    assert [score.notes for score in found] == [{"gold": "4"}] * 2


def test_functions_for_trl_that_know_one_kind_of_task_each() -> None:
    """`reward_funcs=[...]` with `reward_weights=[2, 1]`: who returns None has no say."""
    parts = "[{fn: ./mine.py:of_math, weight: 2.0, judges: true}, {fn: ./mine.py:of_code, judges: true}]"
    math = scored(rows(*TASKS), parts, ["4", "5"], 0)
    code = scored(rows(*TASKS), parts, ["def f(): pass", "no"], 1)
    assert [score.reward for score in (*math, *code)] == [2.0, -2.0, 1.0, -1.0]
    assert "of_code" not in math[0].extras
    both = [*math, *code]
    assert accuracy([score.reward for score in both], [score.extras for score in both]) == 0.5


def test_sync_and_async_functions_of_trl_with_weights() -> None:
    parts = "[{fn: ./mine.py:by_characters, weight: 0.1}, ./mine.py:slow]"
    assert [score.reward for score in scored(rows({"prompt": "a"}), parts, ["bcde", ""])] == [1.4, 0.0]


def test_a_row_that_no_function_has_a_say_in_is_masked_and_no_zero() -> None:
    row = {"prompt": CHAT, "solution": ""}
    parts = "[./mine.py:like_trl_accuracy]"
    found = scored(rows(row), parts, ["4"])
    assert (found[0].reward, found[0].error) == (None, "no part of the reward has a say: all returned None")


def prepared() -> str:
    """As verl's examples prepare GSM8K: parquet with a chat, nested objects, and the columns of its five fields."""
    Dataset.from_list(
        [
            {
                "data_source": "openai/gsm8k",
                "prompt": [{"role": "user", "content": f"{n}+{n}? Give the answer after '####'."}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(2 * n)},
                "extra_info": {"split": "train", "index": n},
            }
            for n in range(4)
        ]
    ).to_parquet("train.parquet")
    return "train.parquet"


def test_data_and_a_function_for_verl() -> None:
    found = scored(prepared(), "./verl.py:compute_score", ["It is #### 4", "#### 5", "no"], 2)
    assert [(score.reward, score.error) for score in found] == [(1.0, None), (0.1, None), (0.0, None)]
    assert [score.reward for score in scored(prepared(), "./verl.py:by_length", ["a" * 50])] == [0.5]


def test_a_function_for_verl_with_keyword_arguments_that_returns_more() -> None:
    found = scored(prepared(), "./verl.py:with_more", ["2", "3"], 1, "rewards.kwargs.scale=2.0")
    assert [score.reward for score in found] == [2.0, 0.0]
    assert [score.extras for score in found] == [{"acc": 1.0, "index": 1.0}, {"acc": 0.0, "index": 1.0}]
    assert [score.notes for score in found] == [{"pred": "2"}, {"pred": "3"}]
