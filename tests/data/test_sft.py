"""Demonstrations beside what is sampled: which rows join which step, and what is seen of them before a run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from asyncrl.data.sft import Demonstrations, load_checked, load_source, preview
from asyncrl.errors import UserError
from asyncrl.models import tiny_tokenizer
from asyncrl.recipe.check import check
from asyncrl.recipe.schema import Recipe

ROWS = [{"prompt": f"{n}: ", "completion": "x" * (n + 1)} for n in range(7)]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ROWS)
    return tmp_path


def recipe(rows_per_step: int = 3, seed: int = 1, **data: Any) -> Recipe:
    sft = {"data": {"path": "rows.jsonl", **data}, "rows_per_step": rows_per_step}
    rollout = {"max_prompt_tokens": 20, "max_new_tokens": 20}
    keys = {"model": "random:tiny-llama", "data": {"path": "rows.jsonl"}, "reward": "m:f", "max_steps": 3, "seed": seed}
    return Recipe.model_validate({**keys, "rollout": rollout, "algorithm": {"sft": sft}})


def learnt(r: Recipe, steps: range) -> list[list[str]]:
    """Texts of the answers, by step."""
    demonstrations, tokenizer = Demonstrations(r, tiny_tokenizer(), Path()), tiny_tokenizer()
    return [[tokenizer.decode(s.tokens[slice(*s.learnt[0])]) for [s] in demonstrations.rows(step)] for step in steps]


def test_rows_are_a_function_of_seed_and_step(folder: Path) -> None:
    in_order = learnt(recipe(), range(6))
    # A process that begins at step 4, as after a resume, or trains a step once more.
    assert learnt(recipe(), range(4, 6)) == in_order[4:]
    assert learnt(recipe(), range(2, 1, -1)) == [in_order[2]]
    assert learnt(recipe(seed=2), range(6)) != in_order
    # Every epoch has each row once, in an order of its own.
    drawn = [text for texts in learnt(recipe(), range(14)) for text in texts]
    epochs = [drawn[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == sorted(f"{row['completion']}</s>" for row in ROWS) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert learnt(recipe(shuffle=False), range(2)) == [
        ["x</s>", "xx</s>", "xxx</s>"],
        ["xxxx</s>", "xxxxx</s>", "xxxxxx</s>"],
    ]


def test_a_row_that_is_too_long_is_left_out_before_the_first_draw(folder: Path, caplog: Any) -> None:
    write(folder, [*ROWS[:1], {"prompt": "a", "completion": "b" * 99}, *ROWS[2:]])
    with caplog.at_level(logging.WARNING):
        cut = learnt(recipe(shuffle=False), range(2))
    assert cut == [["x</s>", "xxx</s>", "xxxx</s>"], ["xxxxx</s>", "xxxxxx</s>", "xxxxxxx</s>"]]
    [said] = [record.message for record in caplog.records]
    assert "1 of 7 rows are left out: 1 row_too_long" in said
    assert "rows.jsonl line 2" in said


def test_rows_are_as_long_as_the_longest_trajectory_unless_it_is_said(folder: Path) -> None:
    assert recipe().max_demonstration == 40
    assert recipe(max_tokens=9).max_demonstration == 9


def test_the_first_row_is_shown_before_the_run_and_logged_at_its_start(folder: Path, caplog: Any) -> None:
    lines = preview(recipe(shuffle=False), Path())
    assert lines[0] == "sft        3 of 7 rows of <= 40 tokens join each step, weight 0.1"
    assert lines[1].startswith("first row  3 tokens, ")
    assert "rows.jsonl line 1" in lines[1]
    assert lines[2:] == ["  | 0: ", "answer     2 tokens are learnt, the last is 2 '</s>'", "  | x</s>"]
    with caplog.at_level(logging.INFO):
        source = load_checked(recipe(), tiny_tokenizer())
    assert source.num_rows == 7
    assert any("first demonstration of algorithm.sft: 3 tokens" in record.message for record in caplog.records)
    without = recipe().model_copy(update={"algorithm": recipe().algorithm.model_copy(update={"sft": None})})
    assert (preview(without, Path()), load_checked(without, tiny_tokenizer())) == ([], None)


def test_rows_are_found_from_the_folder_of_the_run(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A trainer process works elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_source(recipe(), tmp_path, tiny_tokenizer()).num_rows == 7
    with pytest.raises(UserError, match=r"algorithm.sft: data.path: .*rows.jsonl"):
        load_source(recipe(), Path(), tiny_tokenizer())


@pytest.mark.parametrize(
    ("rows", "keys", "fault"),
    [
        ([{"prompt": "a"}], {}, "has no column of chats"),
        ([{"prompt": "a", "completion": ""}], {}, "1 of 1 rows have no usable prompt and answer"),
        ([{"prompt": "a", "completion": "b" * 60}], {}, "more than the 40 tokens of algorithm.sft.data.max_tokens"),
        ([{"prompt": "a", "completion": "b"}], {"system": "c"}, "data.system needs chat prompts"),
    ],
)
def test_rows_that_cannot_be_learnt_are_refused(
    folder: Path, rows: list[dict[str, Any]], keys: dict[str, Any], fault: str
) -> None:
    write(folder, rows)
    for look in (lambda r: preview(r, Path()), lambda r: load_checked(r, tiny_tokenizer())):
        with pytest.raises(UserError, match=f"^algorithm.sft: .*{fault}"):
            look(recipe(**keys))


def test_chats_are_rendered_as_the_tasks_are(folder: Path) -> None:
    keys = recipe().model_dump(exclude={"algorithm": {"sft": {"data": {"chat", "system"}}}})
    keys["data"] |= {"chat": True, "system": "s", "prompt_column": "question"}
    data = Recipe.model_validate(keys).algorithm.sft.data
    # Columns are the rows' own.
    assert (data.chat, data.system, data.prompt_column) == (True, "s", None)
    keys["algorithm"]["sft"]["data"] |= {"chat": False}
    assert not Recipe.model_validate(keys).algorithm.sft.data.chat


def test_the_file_is_looked_for_before_anything_starts(folder: Path) -> None:
    with pytest.raises(UserError, match=r"algorithm.sft.data.path row.jsonl does not exist; did you mean rows.jsonl"):
        check(recipe(path="row.jsonl").model_copy(update={"reward": None, "data": recipe().data}), folder)
