"""Tool calls in the forms of several families, by vLLM's parsers, and in Qwen's and Hermes' (test_template.py)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from chats import CHATML, HEADERS, INST, THINKING, TURNS, tokenizer

from asyncrl.envs.chat import Chat
from asyncrl.envs.environment import Ask, Sampled
from asyncrl.envs.template import Template
from asyncrl.envs.tool_calls import HERMES, Hermes, Vllm, call_id, tool_parser
from asyncrl.envs.tools import Toolbox
from asyncrl.errors import UserError

CODER = CHATML + "{# <tool_call>\n<function=name>\n<parameter=a>... #}"
WRITTEN = {
    "hermes": '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>',
    "llama3_json": '{"name": "add", "parameters": {"a": 2, "b": 3}}',
    "mistral": '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 2, "b": 3}}]',
    "qwen3_coder": "<tool_call>\n<function=add>\n<parameter=a>\n2\n</parameter>\n<parameter=b>\n3\n</parameter>\n"
    "</function>\n</tool_call>",
    "glm45": "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>2</arg_value>\n<arg_key>b</arg_key>\n"
    "<arg_value>3</arg_value>\n</tool_call>",
    "pythonic": "[add(a=2, b=3)]",
}


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


SCHEMAS = Toolbox([add], 1.0).schemas
MARKS = ["[TOOL_CALLS]", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]


def vocabulary(template: str) -> Any:
    """With the tokens that the parsers look for."""
    made = tokenizer(template, "<|im_end|>")
    made.add_tokens([*MARKS, "<|python_tag|>"])
    return made


@pytest.mark.parametrize("form", WRITTEN)
def test_a_call_in_each_form(form: str) -> None:
    parser = tool_parser(form, vocabulary(CHATML))[1]
    text, (call,) = parser.read(WRITTEN[form], SCHEMAS, 3)
    assert (text, call.name, call.arguments, call.error) == ("", "add", {"a": 2, "b": 3}, "")
    assert call.id == "c00030000"


@pytest.mark.parametrize("form", WRITTEN)
def test_an_answer_is_no_call(form: str) -> None:
    assert tool_parser(form, vocabulary(CHATML))[1].read(" It is 5.", SCHEMAS, 0) == (" It is 5.", [])


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (THINKING, HERMES),
        (CHATML, HERMES),
        (TURNS, HERMES),
        (CODER, "qwen3_coder"),
        (INST + "{# [TOOL_CALLS] #}", "mistral"),
        (HEADERS + "{# <|python_tag|> #}", "llama3_json"),
        (
            CHATML + "{# <\uff5ctool\u2581call\u2581begin\uff5c>function<\uff5ctool\u2581sep\uff5c>name #}",
            "deepseek_v3",
        ),
        (CHATML + "{# <\uff5ctool\u2581call\u2581begin\uff5c>name<\uff5ctool\u2581sep\uff5c> #}", "deepseek_v31"),
    ],
)
def test_the_form_is_what_the_template_shows(template: str, form: str) -> None:
    name, parser = tool_parser(None, tokenizer(template))
    assert (name, type(parser)) == (form, Hermes if form == HERMES else Vllm)


def test_a_parser_that_fails_is_read_by_the_model_and_an_unknown_one_is_refused() -> None:
    parser = tool_parser("llama3_json", vocabulary(CHATML))[1]

    class Fails:
        def __init__(self, *_: Any) -> None:
            raise KeyError("no token")

    parser._kind = Fails
    text, (call,) = parser.read("anything", SCHEMAS, 0)
    assert text == "anything"
    assert call.error.startswith("the call cannot be read: KeyError: 'no token'")
    with pytest.raises(UserError, match=r"env.tool_parser 'mistrl' is not one of .*; did you mean mistral\?"):
        tool_parser("mistrl", tokenizer(CHATML))


def test_ids_are_as_mistrals_templates_want_them() -> None:
    assert len(call_id(0, 0)) == len(call_id(15, 120)) == 9
    assert call_id(15, 120).isalnum()


def test_a_conversation_with_tools_in_another_form() -> None:
    made = vocabulary(CHATML)
    template = Template(made, None, tool_parser("pythonic", made)[1])

    class Script:
        texts = ("[add(a=2, b=3), add(a=1, b=1)]", "5 and 2")

        async def generate(self, ask: Ask) -> Sampled:
            text, *self.texts = self.texts
            return Sampled([*made(text, add_special_tokens=False).input_ids, template.end], None, "stop", 0)

    chat = Chat(Script(), template, [{"role": "user", "content": "go"}], Toolbox([add], 1.0))
    reply = asyncio.run(chat.run_tools())
    assert reply.text == "5 and 2"
    assert [message["content"] for message in chat.messages if message["role"] == "tool"] == ["5", "2"]
