"""Which rows are drawn: shares are of rows that can be trained; what is left out is so before the first draw."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from chats import CHATML, NEXT_ENDS, tokenizer
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.data import tasks as module
from asyncrl.data.mixture import Mixture
from asyncrl.data.prompts import BadPrompt
from asyncrl.data.source import load_rows
from asyncrl.data.tasks import TaskSource
from asyncrl.errors import UserError
from asyncrl.models import tiny_tokenizer
from asyncrl.recipe.data import DataPart, DataRecipe

USER = {"role": "user", "content": "2+2?"}
BYTES = tiny_tokenizer()


class Table(list):
    """A list of rows is a table."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])


def source(prompts: list[Any], num_answers: int = 0, seed: int = 0, **keys: Any) -> TaskSource:
    rows = [one if isinstance(one, dict) else {"prompt": one} for one in prompts]
    recipe = DataRecipe(path="x.jsonl", on_bad_row="skip", **keys)
    tasks = TaskSource(Table(rows), recipe, seed, num_answers)
    tasks.check_prompts()
    return tasks


def mixture(tables: dict[str, list[str | None]], most: int, **keys: Any) -> Mixture:
    parts = [DataPart(path="x.jsonl", name=name, on_bad_row="skip", **keys) for name in tables]
    tasks = Mixture(parts, [Table({"prompt": p} for p in prompts) for prompts in tables.values()], 0)
    tasks.check_prompts()
    tasks.leave_out(BYTES, most)
    return tasks


HALF_BAD = [f"{n}" if n % 2 else None for n in range(20)] + ["long " * 9 for _ in range(20)]


def test_a_share_is_of_rows_that_can_be_trained() -> None:
    """Of the first source three rows in four are empty or too long: they counted in its share once."""
    tasks = mixture({"bad": HALF_BAD, "good": [f"{n}" for n in range(40)]}, 20)
    drawn = [tasks.task(draw) for draw in range(80)]
    assert Counter(task.source for task in drawn) == {"bad": 40, "good": 40}
    assert all(len(BYTES(task.prompt).input_ids) <= 20 for task in drawn)
    assert Counter(task.row_index for task in drawn if task.source == "bad") == dict.fromkeys(range(1, 20, 2), 4)
    assert tasks.selected() == [
        {"name": "bad", "rows": 40, "left_out": {"prompt_empty": 10, "prompt_too_long": 20}},
        {"name": "good", "rows": 40, "left_out": {}},
    ]
    assert tasks.described()[0] == "bad: 50.0% of the tasks (weight 1), 10 of 40 rows"
    assert tasks.num_drawn == 50


@given(st.lists(st.sampled_from(["", "a", "b" * 30]), min_size=1, max_size=30), st.integers(0, 99), st.booleans())
def test_every_epoch_visits_every_row_that_is_left_once(prompts: list[str], epoch: int, shuffle: bool) -> None:
    usable = [place for place, prompt in enumerate(prompts) if prompt == "a"]
    if not usable:
        with pytest.raises(UserError, match=r"have no usable prompt|no row of x.jsonl is left to draw"):
            source(prompts, shuffle=shuffle).leave_out(BYTES, 20)
        return
    tasks = source(prompts, shuffle=shuffle)
    tasks.leave_out(BYTES, 20)
    drawn = [tasks.row_of(epoch * len(usable) + place) for place in range(len(usable))]
    assert sorted(drawn) == usable
    again = source(prompts, shuffle=shuffle)
    again.leave_out(BYTES, 20)
    assert [again.row_of(epoch * len(usable) + place) for place in range(len(usable))] == drawn


def test_rows_that_are_all_drawn_come_in_the_order_they_always_had() -> None:
    plain = TaskSource(Table({"prompt": f"{n}"} for n in range(9)), DataRecipe(path="x.jsonl"), 3)
    looked_at = source([f"{n}" for n in range(9)], seed=3, deduplicate=True)
    looked_at.leave_out(BYTES, 20)
    assert [plain.row_of(draw) for draw in range(30)] == [looked_at.row_of(draw) for draw in range(30)]


def test_only_rows_that_may_be_too_long_are_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []

    def counting(task: Any, tokenizer: Any) -> list[int]:
        counted.append(task.prompt)
        return BYTES(task.prompt).input_ids

    monkeypatch.setattr(module, "tokenize", counting)
    source(["a", "b" * 200, "c"]).leave_out(BYTES, 100)
    assert counted == ["b" * 200]


def test_beyond_so_many_the_others_are_looked_at_when_they_are_drawn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_MOST_LOOKED_AT", 2)
    tasks = source(["a", *["b" * 200] * 4])
    tasks.leave_out(BYTES, 100)
    assert tasks.selected()[0]["left_out"] == {"prompt_too_long": 2}
    assert "from row 3 on they are looked at when they are drawn, and count in shares" in caplog.text


def test_duplicates_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    tasks = source(["a", "b", "a", "c", "a"], deduplicate=True)
    assert sorted(tasks.row_of(draw) for draw in range(3)) == [0, 1, 3]
    said = "data: 2 of 5 rows are left out: 2 duplicate (row 2, column 'prompt', is that of an earlier row)"
    assert said in caplog.text
    assert source(["a", "a"]).num_drawn == 2, "unless the recipe says so, none is"


def test_the_same_words_with_other_tools_or_variables_are_another_prompt() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    rows = [
        {"prompt": [USER], "tools": None, "chat_template_kwargs": None},
        {"prompt": [USER], "tools": [tool], "chat_template_kwargs": None},
        {"prompt": [USER], "tools": None, "chat_template_kwargs": {"enable_thinking": True}},
        {"prompt": [dict(reversed(USER.items()))], "tools": None, "chat_template_kwargs": None},
    ]
    assert source(rows, deduplicate=True).selection.rows.tolist() == [0, 1, 2]
    half = {"prompt": [USER], "tools": [{**tool, "strict": "\udc80"}], "chat_template_kwargs": None}
    assert source([*rows, half], deduplicate=True).num_drawn == 4
    text = source([{"prompt": "2+2?"}, {"prompt": [USER]}], deduplicate=True, chat=True)
    assert text.num_drawn == 1, "a text becomes the same message"


def test_demonstrations_of_one_prompt_differ_by_their_answers() -> None:
    rows = [{"prompt": "a", "completion": answer} for answer in ("x", "y", "x")]
    assert source(rows, 1, deduplicate=True).selected()[0]["left_out"] == {"duplicate": 1}


def test_what_an_earlier_source_has_is_a_duplicate_too() -> None:
    tasks = mixture({"one": ["a", "b"], "two": ["b", "c", "c"]}, 20, deduplicate=True)
    assert [found["left_out"] for found in tasks.selected()] == [{}, {"duplicate": 2}]
    with pytest.raises(UserError, match=r"data: no row of x.jsonl is left to draw: 2 of 2 rows are left out"):
        mixture({"one": ["a", "b"], "two": ["b", "a"]}, 20, deduplicate=True)


def test_rows_that_a_program_makes_are_all_made_to_find_duplicates() -> None:
    options = {"size": 300, "min_terms": 2, "max_terms": 2, "max_digits": 1}
    recipe = DataRecipe(path="reasoning_gym:chain_sum", options=options, deduplicate=True)
    tasks = TaskSource(load_rows(recipe, 0), recipe, 0)
    tasks.check_prompts()
    prompts = [tasks.task(draw).prompt for draw in range(tasks.num_drawn)]
    assert len(set(prompts)) == len(prompts) < 300


def test_what_is_drawn_is_part_of_what_the_data_is() -> None:
    recipe = DataRecipe(path="reasoning_gym:chain_sum", options={"size": 300, "max_digits": 1, "max_terms": 2})
    plain, deduplicated = (
        TaskSource(load_rows(one, 0), one, 0) for one in (recipe, recipe.model_copy(update={"deduplicate": True}))
    )
    before = plain.digest()
    assert deduplicated.digest() == before
    plain.check_prompts()
    deduplicated.check_prompts()
    assert (plain.digest(), deduplicated.digest() == before) == (before, False)


@pytest.mark.parametrize("template", [CHATML, NEXT_ENDS])
@pytest.mark.parametrize("text", ["4{} and more", "4{}", "{}"])
def test_an_answer_with_the_mark_that_ends_one_would_be_learnt_past_its_end(template: str, text: str) -> None:
    model = tokenizer(template, "<|im_end|>")
    mark = "<|im_end|>" if template == CHATML else "<|im_start|>"
    bad = {"messages": [USER, {"role": "assistant", "content": text.format(mark)}]}
    good = {"messages": [{**USER, "content": f"what is {mark}?"}, {"role": "assistant", "content": "a mark"}]}
    tasks = source([good, bad], 1)
    tasks.leave_out(model, 1000)
    assert tasks.selected()[0]["left_out"] == {"answer_has_end_mark": 1}
    strict = TaskSource(Table([good, bad]), DataRecipe(path="x.jsonl"), 0, 1)
    strict.check_prompts()
    with pytest.raises(UserError) as caught:
        strict.leave_out(model, 1000)
    assert str(caught.value) == (
        f"data.path: row 1, column 'messages', has an answer with {mark} in it, which ends an answer. Take the marks "
        "out of 1 answers, or set data.on_bad_row=skip to leave such rows out"
    )


def test_a_text_may_end_with_the_mark_but_not_go_on_behind_it() -> None:
    rows = [{"prompt": "a", "completion": text} for text in ("b", "b</s>", "b</s> c", "</s></s>")]
    tasks = source(rows, 1)
    tasks.leave_out(tokenizer(None), 1000)
    assert tasks.selection.rows.tolist() == [0, 1]
    pair = source(
        [{"prompt": "a", "chosen": "b", "rejected": "c</s> d"}, {"prompt": "a", "chosen": "b", "rejected": "c"}], 2
    )
    pair.leave_out(tokenizer(None), 1000)
    assert pair.selection.rows.tolist() == [1]


def test_rows_that_are_too_long_with_their_answers_are_left_out() -> None:
    rows = [{"prompt": "a", "completion": "b" * number} for number in (3, 90)]
    tasks = source(rows, 1)
    tasks.leave_out(BYTES, 40)
    assert tasks.selected()[0]["left_out"] == {"row_too_long": 1}
    with pytest.raises(UserError, match=r"data.path: no row of x.jsonl is left to draw: .* row_too_long \(row 0"):
        source(rows[1:], 1).leave_out(BYTES, 40)


def test_a_row_that_the_template_refuses_is_left_out_if_it_is_looked_at() -> None:
    model = tokenizer("{{ raise_exception('No') if messages|length > 1 }}a")
    system = {"role": "system", "content": "s" * 200}
    tasks = source([{"prompt": [USER]}, {"prompt": [system, USER]}])
    tasks.leave_out(model, 100)
    assert tasks.selected()[0]["left_out"] == {"template_refused": 1}
    assert isinstance(tasks.first(model)[1], list)


def test_no_draw_is_lost_in_a_table_whose_rows_are_read_anew() -> None:
    tasks = source(["a", "", "b"])
    with pytest.raises(BadPrompt):
        tasks._task(0, 1)
    assert {tasks.task(draw).prompt for draw in range(2)} == {"a", "b"}
