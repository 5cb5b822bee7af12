"""What a row is as a prompt: nothing is dropped, printed as Python or guessed at."""

import json

import datasets
import pytest

from asyncrl.data.prompts import BadPrompt, PromptReader
from asyncrl.recipe.data import DataRecipe

USER = {"role": "user", "content": "two plus two"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add"}}]}
ANSWER = {"role": "tool", "content": "4"}


def read(row, from_arrow=False, **keys):
    column = "prompt"
    return PromptReader(DataRecipe(path="x.csv", **keys), column, frozenset(row), from_arrow).read(row)


def test_text_and_chat():
    assert read({"prompt": "a"}).value == "a"
    assert read({"prompt": "[a] is no list"}).value == "[a] is no list"
    assert read({"prompt": "[1, 2]"}).value == "[1, 2]"
    assert read({"prompt": "a"}, chat=True).value == [{"role": "user", "content": "a"}]
    assert read({"prompt": [USER]}).value == [USER]


def test_messages_stored_as_json_are_read():
    assert read({"prompt": json.dumps([USER])}).value == [USER]
    assert read({"prompt": f"\n {json.dumps([USER])}"}, chat=True).value == [USER]


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "plus", "image": None}, " two"]
    assert read({"prompt": [{"role": "user", "content": parts}]}).value == [USER]


@pytest.mark.parametrize("kind", ["image", "image_url", "audio", "input_audio", "video", "file"])
def test_other_parts_are_refused_by_name(kind):
    content = [{"type": kind, "text": None}, {"type": "text", "text": "what is it?"}]
    with pytest.raises(BadPrompt, match=f"has a part of type '{kind}' in message 1; .* text only") as caught:
        read({"prompt": [USER, {"role": "user", "content": content}]})
    assert caught.value.reason == "prompt_not_text"


@pytest.mark.parametrize(
    ("text", "column"), [("<image>what?", "images"), ("a <video>", "video"), ("<audio>", "audios")]
)
def test_a_place_for_an_image_is_refused_if_the_row_has_images(text, column):
    assert read({"prompt": text}).value == text
    for prompt in (text, [{"role": "user", "content": text}]):
        with pytest.raises(BadPrompt, match="has a place for one of its"):
            read({"prompt": prompt, column: ["x"]})


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_tools_reach_the_template(tools):
    assert read({"prompt": [USER], "tools": tools}).tools == [TOOL]
    assert read({"prompt": "a", "tools": tools}, chat=True).tools == [TOOL]


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_a_row_without_tools_has_none(tools):
    assert read({"prompt": [USER], "tools": tools}).tools is None


def test_arguments_of_calls_are_objects_as_templates_want_them():
    as_json = {**CALL, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}]}
    found = read({"prompt": [USER, as_json, ANSWER]}).value[1]
    assert found["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]
    assert as_json["tool_calls"][0]["function"]["arguments"] == '{"a": 2}'


def test_a_call_keeps_its_content_none():
    assert read({"prompt": [USER, CALL, ANSWER]}).value == [USER, CALL, ANSWER]
    without = {key: value for key, value in CALL.items() if key != "content"}
    assert read({"prompt": [USER, without, ANSWER]}).value == [USER, without, ANSWER]


def test_what_arrow_adds_is_taken_out():
    other = {"type": "function", "function": {"name": "mul", "parameters": {"type": "object", "properties": {"b": {}}}}}
    rows = datasets.Dataset.from_list(
        [
            {"prompt": [USER], "tools": [{"kind": {"name": "a", "x": 1}}]},
            {"prompt": [USER], "tools": [{"kind": {"y": 2}}]},
        ]
    )
    assert rows[1]["tools"] == [{"kind": {"name": None, "x": None, "y": 2}}]
    assert read(rows[1], from_arrow=True).tools == [{"kind": {"y": 2}}]
    chat = [USER, {**CALL, "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}, ANSWER]
    other_chat = [USER, {**CALL, "tool_calls": [{"function": {"name": "mul", "arguments": {"b": 2}}}]}, ANSWER]
    table = datasets.Dataset.from_list([{"prompt": chat}, {"prompt": other_chat}])
    assert [read(row, from_arrow=True).value for row in table] == [chat, other_chat]
    # What JSON says is null is null.
    assert read({"prompt": [USER], "tools": [{**other, "default": None}]}).tools == [{**other, "default": None}]


def test_variables_of_the_template():
    assert read({"prompt": [USER]}, chat_template_kwargs={"a": 1}).template_kwargs == {"a": 1}
    own = read({"prompt": [USER], "chat_template_kwargs": {"a": 2, "b": 3}}, chat_template_kwargs={"a": 1, "c": 4})
    assert own.template_kwargs == {"a": 2, "b": 3, "c": 4}


@pytest.mark.parametrize(
    ("row", "reason", "fault"),
    [
        ({"prompt": None}, "prompt_empty", "is null"),
        ({"prompt": " \n"}, "prompt_empty", "is empty"),
        ({"prompt": [{"role": "user", "content": ""}]}, "prompt_empty", "has only empty messages"),
        ({"prompt": 3}, "prompt_malformed", "must be text or a list of chat messages, not 3"),
        ({"prompt": []}, "prompt_malformed", "must be text or a list"),
        ({"prompt": ["a"]}, "prompt_malformed", "must be text or a list"),
        ({"prompt": [{"from": "human", "value": "a"}]}, "prompt_malformed", "must be text or a list"),
        ({"prompt": [{"role": "user"}]}, "prompt_malformed", r"has no content \(message 0, user\)"),
        ({"prompt": [{"role": "user", "content": 7}]}, "prompt_malformed", "has no text as content: 7"),
        ({"prompt": "a \ud83d"}, "prompt_malformed", r"has half a character \('\\ud83d'\)"),
        ({"prompt": [USER, {"role": "assistant", "content": "4"}]}, "prompt_ends_with_assistant", "ends with the"),
        ({"prompt": [USER], "tools": ["add"]}, "prompt_malformed", "has tools that are no list of functions"),
        ({"prompt": [USER], "tools": "add"}, "prompt_malformed", "has tools that are no JSON: 'add'"),
        ({"prompt": [USER], "chat_template_kwargs": [1]}, "prompt_malformed", "has chat_template_kwargs that are no"),
    ],
)
def test_bad_rows_have_a_reason(row, reason, fault):
    with pytest.raises(BadPrompt, match=fault) as caught:
        read(row)
    assert caught.value.reason == reason
