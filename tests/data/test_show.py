"""`asyncrl data`: what the model will see."""

import json
from pathlib import Path

import pytest

from asyncrl.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"{'long ' * n}{n}" for n in range(1, 21)]
    rows = [{"prompt": text, "answer": str(n)} for n, text in enumerate(words)]
    for name, kept in (("a", rows), ("b", rows[:3]), ("bad", [*rows, {"prompt": "", "answer": "x"}])):
        Path(f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))
    before = sorted(tmp_path.iterdir())
    yield tmp_path
    assert sorted(tmp_path.iterdir()) == before


def shown(capsys, *arguments):
    keys = ["data.options={}", "reward=asyncrl.rewards.math:exact_match"]
    keys = keys if any(a.startswith("data.path") for a in arguments) else keys[1:]
    code = main(["data", str(ROOT / "recipes/tiny.yaml"), *keys, *arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out.splitlines()


def test_rows_lengths_and_the_first_tasks_are_shown(capsys):
    lines = shown(capsys, "data.path=a.jsonl", "data.shuffle=false", "-n", "2")
    assert lines[0] == "source     a.jsonl: 20 rows"
    assert lines[1] == "columns    prompt, answer; the prompt is 'prompt'"
    # "long 1" has 6 bytes, each a token, and so on to "long ... 20" with 102.
    assert lines[2] == "tokens     min 6, median 57, p95 97, max 102 of the first 20 rows"
    assert lines[3] == "left out   none (rollout.max_prompt_tokens 128)"
    assert [line[:9] for line in lines if line.startswith("task")] == ["task 0   ", "task 1   "]
    assert lines[5].startswith("task 0     6 tokens, the last are ")
    assert lines[6:8] == ["  | long 1", "    answer = '0'"]


def test_sources_of_a_mixture_and_what_is_too_long(capsys):
    mixture = "data=[{path: a.jsonl, weight: 3}, {path: b.jsonl, name: few}]"
    lines = shown(capsys, mixture, "rollout.max_prompt_tokens=52", "-n", "4")
    assert [line for line in lines if line.startswith("source")] == [
        "source     a.jsonl: 75.0% of the tasks (weight 3), 10 of 20 rows",
        "source     few: 25.0% of the tasks (weight 1), 3 rows",
    ]
    long = "10 prompt_too_long: a.jsonl line 11, column 'prompt', has 57 tokens"
    assert [line for line in lines if line.startswith("left out")] == [
        f"left out   {long} (rollout.max_prompt_tokens 52)",
        "left out   none (rollout.max_prompt_tokens 52)",
    ]
    assert "tokens     min 6, median 57, p95 97, max 102 of the first 20 rows" in lines, "of those left out too"
    sources = [line.strip() for line in lines if "data_source" in line]
    assert sources == [f"data_source = '{name}'" for name in ("a.jsonl", "a.jsonl", "few", "a.jsonl")]


def test_bad_rows_that_are_skipped_are_counted(capsys):
    lines = shown(capsys, "data.path=bad.jsonl", "data.on_bad_row=skip", "-n", "21")
    bad = "1 prompt_empty: bad.jsonl line 21, column 'prompt', is empty"
    assert f"left out   {bad} (rollout.max_prompt_tokens 128)" in lines
    assert lines[0] == "source     bad.jsonl: 20 of 21 rows"
    assert not any("filtered" in line for line in lines)


def test_rows_made_on_demand_are_filtered_when_they_are_drawn(capsys):
    keys = ["rollout.max_prompt_tokens=55", "data.options={size: 50}", "data.path=reasoning_gym:spell_backward"]
    lines = shown(capsys, *keys, "-n", "1")
    assert any(line.startswith("filtered ") and "prompt_too_long of these, when" in line for line in lines), lines
