"""Rows that have the answers: which shapes there are, what is no such row, and which tokens are learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chats import CHATML, NEXT_ENDS, NO_END, TEMPLATES, THINKING, tokenizer

from asyncrl.chat_template import FolderTokenizer
from asyncrl.data.demonstrations import Rendered, Renderer
from asyncrl.data.prompts import BadPrompt
from asyncrl.data.tasks import TaskSource, tokenize
from asyncrl.errors import UserError
from asyncrl.recipe.data import DataRecipe

USER, OTHER = {"role": "user", "content": "2+2?"}, {"role": "user", "content": "and one?"}
FOUR, FIVE = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}

ASKS_FOR_THOUGHTS = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
"""As DeepSeek-R1: an answer is asked for with an opened thought that no written answer has."""


class Table(list):
    """A list of rows is a table."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])


def source(*rows: dict[str, Any], num_answers: int = 1, **keys: Any) -> TaskSource:
    return TaskSource(Table(rows), DataRecipe(path="x.jsonl", shuffle=False, **keys), 0, num_answers)


def rendered(model: Any, *messages: dict[str, Any], **keys: Any) -> list[Rendered]:
    [sequences] = Renderer(model).render(source({"messages": [*messages]}, **keys).task(0))
    return sequences


def learnt(model: Any, sequence: Rendered) -> list[str]:
    return [model.decode(sequence.tokens[start:end]) for start, end in sequence.learnt]


@pytest.mark.parametrize(
    ("row", "keys", "prompt", "answers"),
    [
        ({"messages": [USER, FOUR, OTHER, FIVE]}, {}, [USER], ([FOUR, OTHER, FIVE],)),
        ({"messages": json.dumps([USER, FOUR])}, {}, [USER], ([FOUR],)),
        ({"talk": [USER, FOUR]}, {"prompt_column": "talk"}, [USER], ([FOUR],)),
        ({"prompt": "2+2=", "completion": "4"}, {}, "2+2=", ("4",)),
        ({"question": "2+2?", "answer": "4", "metadata": {}}, {"chat": True}, [USER], ([FOUR],)),
        ({"prompt": [USER], "completion": [FOUR]}, {}, [USER], ([FOUR],)),
        ({"prompt": [USER, FOUR, OTHER], "completion": "5"}, {}, [USER, FOUR, OTHER], ([FIVE],)),
        ({"prompt": "2+2?", "completion": [FOUR]}, {}, [USER], ([FOUR],)),
        ({"question": "2+2=", "gold": "4", "answer": "x"}, {"completion_column": "gold"}, "2+2=", ("4",)),
        ({"prompt": "2+2=", "completion": "4", "messages": [OTHER, FIVE]}, {}, "2+2=", ("4",)),
    ],
)
def test_demonstrations_come_in_many_shapes(row: Any, keys: Any, prompt: Any, answers: Any) -> None:
    tasks = source(row, **keys)
    tasks.check_prompts()
    assert (tasks.task(0).prompt, tasks.task(0).answers) == (prompt, answers)


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        ({"prompt": "2+2=", "chosen": "4", "rejected": "5"}, "2+2=", ("4", "5")),
        ({"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE]}, [USER], ([FOUR], [FIVE])),
        ({"chosen": [USER, FOUR], "rejected": [USER, FIVE]}, [USER], ([FOUR], [FIVE])),
        ({"prompt": "2+2?", "chosen": [USER, FOUR], "rejected": [USER, FIVE]}, [USER], ([FOUR], [FIVE])),
        ({"chosen": [USER, FOUR, OTHER, FIVE], "rejected": [USER, FOUR, OTHER, FOUR]}, None, ([FIVE], [FOUR])),
    ],
)
def test_pairs_come_in_many_shapes(row: Any, prompt: Any, answers: Any) -> None:
    tasks = source(row, num_answers=2)
    tasks.check_prompts()
    assert (tasks.task(0).prompt, tasks.task(0).answers) == (prompt or [USER, FOUR, OTHER], answers)


@pytest.mark.parametrize(
    ("row", "number", "reason", "says"),
    [
        ({"messages": [USER]}, 1, "answer_empty", "has no message of the assistant"),
        ({"messages": "2+2?"}, 1, "prompt_malformed", "must be a list of chat messages"),
        ({"messages": [FOUR]}, 1, "prompt_malformed", "must be text or a list of chat messages"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, 1, "answer_empty", "empty message"),
        ({"prompt": "a", "completion": ""}, 1, "answer_empty", "has no answer in column 'completion'"),
        ({"prompt": "a", "completion": " "}, 1, "answer_empty", "has an empty answer"),
        ({"prompt": "a", "completion": 4}, 1, "prompt_malformed", "neither text nor a list of chat messages: 4"),
        ({"prompt": "a", "completion": [OTHER]}, 1, "answer_empty", "does not begin with a message of the assistant"),
        ({"prompt": "a", "completion": "b\udc80"}, 1, "prompt_malformed", "half a character"),
        ({"prompt": "", "completion": "b"}, 1, "prompt_empty", "is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, 2, "answers_equal", "rejected answer that is the chosen"),
        ({"chosen": [USER, FOUR], "rejected": [OTHER, FIVE]}, 2, "prompt_malformed", "must be text or a list"),
        ({"chosen": [USER, FOUR, OTHER, FIVE], "rejected": [USER, FOUR]}, 2, "prompt_ends_with_assistant", "ends with"),
    ],
)
def test_a_row_without_a_usable_answer_is_refused_by_its_reason(row: Any, number: int, reason: str, says: str) -> None:
    tasks = source(row, num_answers=number)
    with pytest.raises(BadPrompt, match=says) as caught:
        tasks.task(0)
    assert caught.value.reason == reason
    with pytest.raises(UserError, match="1 of 1 rows have no usable prompt and answer"):
        tasks.check_prompts()


def test_data_without_such_columns_is_refused() -> None:
    for row, number in (({"prompt": "a"}, 1), ({"prompt": "a", "chosen": "b"}, 2), ({"text": "a"}, 1)):
        with pytest.raises(UserError, match=f"only {', '.join(row)}; "):
            source(row, num_answers=number)


@pytest.mark.parametrize("eos", ["</s>", "<|im_end|>"])
@pytest.mark.parametrize("family", TEMPLATES)
def test_every_turn_ends_with_its_terminator_and_tokens_are_those_of_the_template(family: str, eos: str) -> None:
    template, end = TEMPLATES[family]
    model = tokenizer(template, eos)
    if "eos_token" in template:
        end = eos
    model.pad_token = end  # and the end is learnt all the same
    sequences = rendered(model, USER, FOUR, OTHER, FIVE)
    [sequence] = sequences
    assert [text.strip() for text in learnt(model, sequence)] == [f"4{end}", f"5{end}"]
    whole = model.apply_chat_template([USER, FOUR, OTHER, FIVE], tokenize=True, return_dict=False)
    assert whole[: len(sequence.tokens)] == sequence.tokens
    assert model.decode(whole[len(sequence.tokens) :]).strip() == ""
    first, _ = sequence.learnt[0]
    assert sequence.tokens[:first] == tokenize(source({"messages": [USER, FOUR]}).task(0), model)
    assert sequence.tokens.count(model.bos_token_id) == int("bos_token" in template)


def test_a_terminator_that_the_template_gives_to_the_next_message_or_to_nobody() -> None:
    model = tokenizer(NEXT_ENDS)
    [sequence] = rendered(model, USER, FOUR, OTHER, FIVE)
    assert learnt(model, sequence) == ["4<|im_start|>", "5<|im_start|>"]
    assert model.decode(sequence.tokens).count("<|im_start|>") == 3
    model = tokenizer(NO_END)
    first, second = rendered(model, USER, FOUR, OTHER, FIVE)
    assert (learnt(model, first), learnt(model, second)) == (["4\n</s>"], ["5\n</s>"])
    # As it is asked, the second time too: the template writes no end.
    assert model.decode(second.tokens) == "user: 2+2?\nassistant: 4\nuser: and one?\nassistant: 5\n</s>"


def test_a_template_that_rewrites_earlier_turns_gives_each_turn_as_it_would_be_sampled() -> None:
    model = tokenizer(THINKING, "<|im_end|>")
    thought = {**FOUR, "reasoning_content": "hm"}
    first, second = rendered(model, USER, thought, OTHER, FIVE)
    assert learnt(model, first) == ["<think>\nhm\n</think>\n\n4<|im_end|>"]
    assert learnt(model, second) == ["5<|im_end|>"]
    assert "hm" not in model.decode(second.tokens)
    pair = source({"prompt": [USER], "chosen": [thought, OTHER, FIVE], "rejected": [FIVE]}, num_answers=2)
    with pytest.raises(BadPrompt, match="rewrites earlier ones"):
        Renderer(model).render(pair.task(0))


def test_a_template_that_asks_for_another_answer_than_it_writes_is_refused() -> None:
    with pytest.raises(BadPrompt, match="otherwise than it asks for one"):
        rendered(tokenizer(ASKS_FOR_THOUGHTS), USER, FOUR)
    asks_not = rendered(tokenizer(THINKING), USER, FOUR, chat_template_kwargs={"enable_thinking": True})
    assert asks_not[0].learnt


def test_texts_are_one_sequence_that_the_tokenizer_reads_and_end_with_eos() -> None:
    model = tokenizer(None)
    task = source({"prompt": "hel", "completion": "lo"}).task(0)
    [[sequence]] = Renderer(model).render(task)
    # As one text it would be the token `hello`; the model is asked with what `hel` is.
    assert sequence.tokens == [*model("hel").input_ids, *model("lo").input_ids, model.eos_token_id]
    assert learnt(model, sequence) == ["lo</s>"]


def test_a_row_that_is_too_long_is_refused_and_all_such_are_an_error() -> None:
    model = tokenizer(None)
    tasks = source({"prompt": "a", "completion": "b" * 20})
    with pytest.raises(BadPrompt, match="has 22 tokens with its answer") as caught:
        Renderer(model).render(tasks.task(0), most=21)
    assert caught.value.reason == "row_too_long"
    Renderer(model).render(tasks.task(0), most=22)
    with pytest.raises(UserError, match=r"all of the first 1 rows have more than the 21 tokens of data\.max_tokens"):
        tasks.check_lengths(model, 21, "data.max_tokens")


def test_a_folder_without_transformers_renders_the_same(tmp_path: Path) -> None:
    model = tokenizer(CHATML, "<|im_end|>")
    model.save_pretrained(tmp_path)
    task = source({"messages": [USER, FOUR, OTHER, FIVE]}).task(0)
    assert Renderer(FolderTokenizer.load(tmp_path)).render(task) == Renderer(model).render(task)
