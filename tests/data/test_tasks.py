import re

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from asyncrl.data.prompts import BadPrompt
from asyncrl.data.source import load_rows
from asyncrl.data.tasks import Task, TaskSource, tokenize
from asyncrl.errors import UserError
from asyncrl.recipe.data import DataRecipe

WORDS = ["<unk>", "<bos>", "user", "assistant", "system", "two", "plus", "terse"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
USER = {"role": "user", "content": "two plus two"}
SYSTEM = {"role": "system", "content": "terse"}


class Table(list):
    """A list of rows is a table."""

    @property
    def column_names(self):
        return list(self[0])


def source(rows=None, seed=0, **keys):
    return TaskSource(Table(rows or [{"question": "two plus two"}]), DataRecipe(path="x.csv", **keys), seed)


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", unk_token="<unk>")


@given(st.integers(1, 40), st.integers(-(2**70), 2**70), st.integers(0, 10**6), st.booleans())
def test_every_epoch_visits_every_row_once(num_rows, seed, epoch, shuffle):
    tasks = source([{"prompt": str(i)} for i in range(num_rows)], seed, shuffle=shuffle)
    drawn = [tasks.row_of(epoch * num_rows + i) for i in range(num_rows)]
    assert sorted(drawn) == list(range(num_rows))
    if not shuffle:
        assert drawn == list(range(num_rows))


@given(st.integers(0, 2**32), st.lists(st.integers(0, 500), min_size=1, max_size=30))
def test_the_order_depends_on_nothing_but_seed_and_draw(seed, draws):
    rows = [{"prompt": str(i)} for i in range(23)]
    serial = source(rows, seed)
    expected = [serial.row_of(i) for i in range(501)]
    resumed = source(rows, seed)
    assert [resumed.row_of(draw) for draw in draws] == [expected[draw] for draw in draws]


def test_epochs_and_seeds_differ():
    rows = [{"prompt": str(i)} for i in range(30)]
    orders = {tuple(source(rows, seed).row_of(e * 30 + i) for i in range(30)) for seed in (0, 1) for e in (0, 1)}
    assert len(orders) == 4


def test_a_task_holds_its_draw_its_row_and_all_columns():
    rows = [{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}]
    where = "row 1, column 'question',"
    expected = Task(3, 1, "b", {"question": "b", "answer": "2"}, where=where, epoch=1.5)
    assert source(rows, shuffle=False).task(3) == expected


def test_prompt_columns_are_tried_in_order():
    row = {"messages": [USER], "problem": "p", "question": "q", "other": "o"}
    assert source([row]).task(0).prompt == "q"
    assert source([row], prompt_column="other").task(0).prompt == "o"
    assert source([row], prompt_column="messages").task(0).prompt == [USER]


def test_chat_and_system():
    assert source(chat=True).task(0).prompt == [USER]
    assert source(chat=True, system="terse").task(0).prompt == [SYSTEM, USER]
    own = [{"role": "system", "content": "chatty"}, {**USER, "name": None}]
    assert source([{"prompt": own}]).task(0).prompt == [own[0], USER]
    assert source([{"prompt": own}], system="terse").task(0).prompt == [SYSTEM, USER]


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        ({"text": "a", "gold": "b"}, {}, "none of the columns prompt, question, problem, messages, only text, gold"),
        ({"text": "a"}, {"prompt_column": "txt"}, "no column 'txt', only text"),
    ],
)
def test_there_must_be_a_prompt_column(row, keys, message):
    with pytest.raises(UserError, match=message):
        source([row], **keys)


BAD = [{"prompt": "a"}, {"prompt": None}, {"prompt": "b"}, {"prompt": []}, {"prompt": ""}, {"prompt": 3}]


def test_bad_rows_are_named_before_anything_starts():
    with pytest.raises(UserError) as caught:
        source(BAD).check_prompts()
    assert str(caught.value) == (
        "data.path: 4 of 6 rows have no usable prompt: row 1, column 'prompt', is null; row 3, column 'prompt', must "
        "be text or a list of chat messages, not []; row 4, column 'prompt', is empty; and others. Mend them, or set "
        "data.on_bad_row=skip to leave them out"
    )
    source([{"prompt": "a"}, {"prompt": [USER]}]).check_prompts()


def test_a_row_of_a_file_is_named_by_its_line(tmp_path):
    path = tmp_path / "null.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": null}\n')
    recipe = DataRecipe(path=str(path))
    with pytest.raises(UserError, match=r"1 of 2 rows .*: .*null\.jsonl line 3, column 'prompt', is null\. Mend"):
        TaskSource(load_rows(recipe, 0), recipe, 0).check_prompts()


def test_bad_rows_are_skipped_if_the_recipe_says_so(caplog):
    tasks = source(BAD, on_bad_row="skip", shuffle=False)
    tasks.check_prompts()
    assert "4 of 6 rows have no usable prompt, and these are skipped (data.on_bad_row): row 1" in caplog.text
    assert [(tasks.task(draw).prompt, tasks.task(draw).row_index) for draw in range(3)] == [
        ("a", 0),
        ("b", 2),
        ("a", 0),
    ]
    assert tasks.task(2).epoch == 1.0
    assert tasks.selected() == [{"name": "x.csv", "rows": 6, "left_out": {"prompt_empty": 2, "prompt_malformed": 2}}]
    with pytest.raises(BadPrompt) as caught:
        source(BAD, shuffle=False).task(1)
    assert (caught.value.reason, str(caught.value)) == ("prompt_empty", "row 1, column 'prompt', is null")


def test_a_recipe_that_skips_bad_rows_already_is_not_told_to(caplog):
    with pytest.raises(UserError, match=r"2 of 2 rows have no usable prompt: .*\. Mend them$"):
        source(BAD[3:5], on_bad_row="skip").check_prompts()
    with pytest.raises(UserError, match=r"\. Mend them$"):
        source(BAD[3:5]).check_prompts()


def test_rows_of_a_table_are_all_read(tmp_path):
    datasets.Dataset.from_list([{"prompt": "a", "x": 1}, {"prompt": None, "x": 2}]).to_parquet(tmp_path / "a.parquet")
    recipe = DataRecipe(path=str(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match="1 of 2 rows have no usable prompt: row 1, column 'prompt', is null"):
        TaskSource(load_rows(recipe, 0), recipe, 0).check_prompts()


@pytest.mark.parametrize("keys", [{"system": "terse"}, {"chat_template_kwargs": {"a": 1}}])
def test_what_is_for_chats_needs_them(keys):
    with pytest.raises(UserError, match=f"data.{next(iter(keys))} needs chat prompts: set data.chat=true"):
        source(**keys).check_prompts()
    source(chat=True, **keys).check_prompts()


def test_chats_need_a_template(tokenizer):
    source().first_prompt(tokenizer)
    chats = [source(chat=True), source([{"prompt": [USER]}])]
    for tasks in chats:
        with pytest.raises(UserError, match="no chat template"):
            tasks.first_prompt(tokenizer)
    tokenizer.chat_template = TEMPLATE
    for tasks in chats:
        task, tokens = tasks.first_prompt(tokenizer)
        assert task.number == 0
        assert tokens == tokenize(task, tokenizer)


def test_a_template_that_refuses_the_first_prompt_is_one_sentence(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('System role not\nsupported') if messages[0].role == 'system' }}a"
    rows = [{"prompt": [SYSTEM, USER]}, {"prompt": [USER]}]
    with pytest.raises(UserError) as caught:
        source(rows, shuffle=False).first_prompt(tokenizer)
    assert str(caught.value) == (
        "data.path: the first prompt, row 0, column 'prompt', is refused by the model's chat template: TemplateError: "
        "System role not supported; take prompts that fit the model"
    )
    tasks = source(rows, shuffle=False, on_bad_row="skip")
    assert tasks.first_prompt(tokenizer)[0].number == 1
    with pytest.raises(UserError, match="the first prompt, row 0"):
        source(rows[:1], on_bad_row="skip").first_prompt(tokenizer)
    with pytest.raises(BadPrompt) as refused:
        tokenize(tasks.task(0), tokenizer)
    assert refused.value.reason == "template_refused"
    assert str(refused.value).startswith("row 0, column 'prompt', is refused by the model's chat template: ")


def test_a_variable_that_the_template_does_not_know_is_refused(tokenizer):
    tokenizer.chat_template = "{% if enable_thinking %}two {% endif %}plus"
    on = source(chat=True, chat_template_kwargs={"enable_thinking": True})
    assert [WORDS[t] for t in on.first_prompt(tokenizer)[1]] == ["two", "plus"]
    with pytest.raises(UserError, match="has no variable 'thinking', only enable_thinking; leave it out"):
        source(chat=True, chat_template_kwargs={"thinking": True}).first_prompt(tokenizer)


def test_tools_that_the_model_does_not_see_are_said(tokenizer, caplog):
    tools = [{"type": "function", "function": {"name": "two"}}]
    tokenizer.chat_template = "{% for t in tools %}{{ t.function.name }} {% endfor %}plus"
    _, tokens = source([{"prompt": [USER], "tools": tools}]).first_prompt(tokenizer)
    assert [WORDS[t] for t in tokens] == ["two", "plus"]
    assert caplog.text == ""
    source([{"prompt": "two", "tools": tools}]).first_prompt(tokenizer)
    assert "the prompts are text, so the model does not see the tools in column 'tools'" in caplog.text
    tokenizer.chat_template = TEMPLATE
    source([{"prompt": [USER], "tools": tools}]).first_prompt(tokenizer)
    assert "the model's chat template shows no tools: the model does not see column 'tools'" in caplog.text


@pytest.fixture
def last_first():
    """Rows, all but one alike, as a source that draws the odd one, which is the first, last."""

    def made(odd, **keys):
        rows = [odd, *({"prompt": [USER], "tools": None} for _ in range(4))]
        seed = next(seed for seed in range(100) if source(rows, seed).row_of(4) == 0)
        tasks = source(rows, seed, **keys)
        tasks.check_prompts()
        return tasks

    return made


def test_tools_of_a_row_that_is_not_drawn_first_are_said_once(tokenizer, caplog, last_first):
    tokenizer.chat_template = TEMPLATE
    tools = [{"type": "function", "function": {"name": "two"}}]
    task, _ = last_first({"prompt": [USER], "tools": tools}).first_prompt(tokenizer)
    assert task.row_index != 0
    assert caplog.text.count("the model's chat template shows no tools") == 1


@pytest.mark.parametrize(
    "odd",
    [[SYSTEM, USER], [USER, USER], [USER, {"role": "assistant", "content": "two"}, {"role": "tool", "content": "two"}]],
)
def test_a_row_that_the_template_refuses_is_named_before_anything_starts(tokenizer, last_first, odd):
    tokenizer.chat_template = "{{ raise_exception('No') if messages|length > 1 }}" + TEMPLATE
    with pytest.raises(UserError, match=r"row 0, .* refused .*: No; .* or set data\.on_bad_row=skip"):
        last_first({"prompt": odd, "tools": None}).first_prompt(tokenizer)
    task, _ = last_first({"prompt": odd, "tools": None}, on_bad_row="skip").first_prompt(tokenizer)
    assert task.row_index != 0


def test_a_chat_among_texts_needs_a_template(tokenizer):
    tasks = source([{"prompt": "two"}, {"prompt": [USER]}], shuffle=False)
    tasks.check_prompts()
    with pytest.raises(UserError, match="no chat template"):
        tasks.first_prompt(tokenizer)


def test_tokenize(tokenizer):
    tokenizer.chat_template = TEMPLATE
    assert tokenize(source().task(0), tokenizer) == [1, 5, 6, 5]
    tokens = tokenize(source(chat=True, system="terse").task(0), tokenizer)
    assert [WORDS[t] for t in tokens] == ["system", "terse", "user", "two", "plus", "two", "assistant"]


def test_prompts_that_are_too_long_are_known_before_the_run(tokenizer, caplog):
    """All of them: a sentence; some: a warning."""
    some = source([{"prompt": "two"}, {"prompt": "two plus two"}])
    some.check_lengths(tokenizer, 4)
    assert not caplog.text
    some.check_lengths(tokenizer, 2)
    assert "1 of the first 2 prompts have more than the 2 tokens of rollout.max_prompt_tokens, up to 4" in caplog.text
    with pytest.raises(UserError, match=r"all of the first 2 prompts have more than the 1 tokens of .*, 2 and more"):
        some.check_lengths(tokenizer, 1)


@pytest.mark.parametrize(
    ("column", "cure"),
    [("prompt;answer", "data.options.sep=';'"), ("prompt\tanswer", "sep='\\t'"), ("rows", "data.options.field=rows")],
)
def test_a_lonely_column_may_be_a_table_read_wrongly(column, cure):
    with pytest.raises(UserError, match=re.escape(cure)):
        source([{column: "x"}])
