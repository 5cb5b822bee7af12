import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from asyncrl.data.tasks import Task, TaskSource, has_chat_template, tokenize
from asyncrl.errors import UserError
from asyncrl.recipe.schema import DataRecipe

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
    assert source(rows, shuffle=False).task(3) == Task(3, 1, "b", {"question": "b", "answer": "2"})


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
        ({"prompt": None}, {}, "row 0 of column 'prompt' must be text or a list of chat messages, not 'None'"),
        ({"prompt": []}, {}, "must be text or a list"),
        ({"prompt": ["a"]}, {}, "must be text or a list"),
        ({"prompt": "a"}, {"system": "terse"}, "data.system needs chat prompts"),
        ({"messages": [USER, {"role": "assistant", "content": "4"}]}, {}, "ends with the assistant's answer"),
    ],
)
def test_what_a_user_may_get_wrong(row, keys, message):
    with pytest.raises(UserError, match=message):
        source([row], **keys)


def test_chats_need_a_template(tokenizer):
    source().check_template(tokenizer)
    chats = [source(chat=True), source([{"prompt": [USER]}])]
    for tasks in chats:
        with pytest.raises(UserError, match="no chat template"):
            tasks.check_template(tokenizer)
    tokenizer.chat_template = TEMPLATE
    for tasks in chats:
        tasks.check_template(tokenizer)


def test_tokenize(tokenizer):
    tokenizer.chat_template = TEMPLATE
    assert tokenize(source().task(0), tokenizer) == [1, 5, 6, 5]
    tokens = tokenize(source(chat=True, system="terse").task(0), tokenizer)
    assert [WORDS[t] for t in tokens] == ["system", "terse", "user", "two", "plus", "two", "assistant"]


def test_has_chat_template(tmp_path, tokenizer):
    assert not has_chat_template(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert not has_chat_template(tmp_path)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    assert has_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    assert has_chat_template(tmp_path)
