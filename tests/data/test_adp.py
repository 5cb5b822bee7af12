"""Trajectories of the Agent Data Protocol as rows of SFT: what they become, what is learnt of them, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chats import CHATML, tokenizer

from asyncrl.data import adp
from asyncrl.data.demonstrations import Renderer
from asyncrl.data.prompts import BadPrompt
from asyncrl.data.source import load_rows
from asyncrl.data.tasks import TaskSource
from asyncrl.errors import UserError
from asyncrl.recipe.data import DataRecipe


def observed(text: str, source: str, **more: Any) -> adp.Item:
    return {"class_": "text_observation", "content": text, "source": source, **more}


def called(function: str, description: str | None = None, **kwargs: Any) -> adp.Item:
    return {"class_": "api_action", "function": function, "kwargs": kwargs, "description": description}


def said(text: str) -> adp.Item:
    return {"class_": "message_action", "content": text, "description": None}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CODE = {"class_": "code_action", "language": "bash", "content": "ls", "description": "Look."}
PAGE = {"class_": "web_observation", "html": "<p>9", "axtree": "text 9", "url": "http://x", "viewport_size": None}
CONTENT = [
    observed("How many files?", "user"),
    CODE,
    observed("a b", "environment"),
    called("count", "Both.", path="."),
    called("stat", path="a"),
    observed("2", "environment"),
    observed("0 bytes", "environment"),
    said("Two."),
    observed("Sure?", "environment"),
    called("open", url="x") | {"tool_call_id": "c1", "reasoning_content": "hm"},
    PAGE | {"tool_call_id": "c1"},
    observed("I think 9", "agent", name="critic"),
    said("Nine."),
]
CHAT = [
    {"role": "user", "content": "How many files?"},
    {"role": "assistant", "content": "Look.", "tool_calls": [call("run_code", language="bash", code="ls")]},
    {"role": "tool", "content": "a b"},
    {"role": "assistant", "content": "Both.", "tool_calls": [call("count", path="."), call("stat", path="a")]},
    {"role": "tool", "content": "2"},
    {"role": "tool", "content": "0 bytes"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Sure?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", **call("open", url="x")}],
        "reasoning_content": "hm",
    },
    {"role": "tool", "content": "text 9", "tool_call_id": "c1"},
    {"role": "user", "content": "I think 9", "name": "critic"},
    {"role": "assistant", "content": "Nine."},
]


def test_actions_are_the_assistants_and_observations_the_tools_or_the_users() -> None:
    assert adp.messages(CONTENT) == CHAT


def rows(tmp_path: Path, *contents: list[adp.Item]) -> TaskSource:
    path = tmp_path / "std.jsonl"
    lines = ({"id": str(i), "content": content, "details": {}} for i, content in enumerate(contents))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = DataRecipe(path=str(path), shuffle=False)
    return TaskSource(load_rows(recipe, 0), recipe, 0, num_answers=1)


def test_a_file_of_trajectories_is_learnt_as_it_comes(tmp_path: Path) -> None:
    short = [observed("2+2?", "user"), said("4"), observed("and one?", "user"), said("5")]
    source = rows(tmp_path, CONTENT, short)
    source.check_prompts()
    task = source.task(0)
    assert [*task.prompt, *task.answers[0]] == CHAT
    model = tokenizer(CHATML)
    [[sequence]] = Renderer(model).render(source.task(1))
    learnt = [model.decode(sequence.tokens[start:end]) for start, end in sequence.learnt]
    assert learnt == ["4<|im_end|>", "5<|im_end|>"]


@pytest.mark.parametrize(
    ("item", "reason", "says"),
    [
        ({"class_": "image_observation", "content": "x.png"}, "prompt_not_text", "has an image"),
        ({"class_": "thought"}, "prompt_malformed", "an item of class 'thought', which the Agent Data Protocol"),
        ({"class_": "api_action", "kwargs": {}}, "prompt_malformed", r"item 1 of its content \(api_action\) has no 'f"),
    ],
)
def test_what_is_no_text_or_no_part_of_the_protocol_is_refused(item: Any, reason: str, says: str) -> None:
    class Table(list):
        column_names = ("id", "content", "details")

    row = {"id": "0", "content": [observed("2+2?", "user"), item, said("4")], "details": {}}
    source = TaskSource(Table([row]), DataRecipe(path="x.jsonl"), 0, num_answers=1)
    with pytest.raises(BadPrompt, match=says) as caught:
        source.task(0)
    assert caught.value.reason == reason


def test_prompts_of_rl_are_no_trajectories(tmp_path: Path) -> None:
    path = tmp_path / "std.jsonl"
    path.write_text(json.dumps({"id": "0", "content": CONTENT, "details": {}}) + "\n")
    recipe = DataRecipe(path=str(path))
    with pytest.raises(UserError, match="none of the columns prompt"):
        TaskSource(load_rows(recipe, 0), recipe, 0)
