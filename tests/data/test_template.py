"""A prompt that is rendered without transformers is the one that transformers renders."""

import json

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from asyncrl.chat_template import FolderTokenizer, _compiled, chat_template, variables
from asyncrl.data.tasks import Task, tokenize
from asyncrl.models import tiny_tokenizer

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
    {%- for tool in tools %}
        {{- "\\n" }}{{ tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role != 'user' %}{% continue %}{% endif %}
    {%- set ns.last = loop.index0 %}
    {%- break %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>' + (call.function.arguments | tojson(indent=1)) + '</tool_call>' }}
        {%- endfor %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA = """\
{{ bos_token }}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
[INST] {{ message['content'] | trim }} [/INST]
    {% else %}
        {% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}
    {% endif %}
{% endfor %}
"""
DATED = "{{ bos_token }}{{ strftime_now('%d %b %Y') }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TOOL = {"type": "function", "function": {"name": "größer", "parameters": {"b": {}, "a": {"enum": ["<", '"']}}}}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": [1]}}}]}
USER, OTHER = {"role": "user", "content": " 1 < 2? ü "}, {"role": "assistant", "content": "yes"}
SYSTEM = {"role": "system", "content": "<s>be terse"}
CHATS = {
    "one": dict(prompt=[USER]),
    "system": dict(prompt=[SYSTEM, USER]),
    "turns": dict(prompt=[USER, OTHER, USER]),
    "tools": dict(prompt=[SYSTEM, USER, CALL, {"role": "tool", "content": "3"}, USER], tools=[TOOL]),
    "variables": dict(prompt=[USER], template_kwargs={"enable_thinking": False}),
}
TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "dated": DATED, "many": {"default": LLAMA, "tool_use": CHATML}}


def save(folder, template, **keys):
    words = tiny_tokenizer().tokenizer
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **keys)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder), FolderTokenizer.load(folder)


def outcome(task, tokenizer):
    try:
        return tokenize(task, tokenizer)
    except Exception as error:
        return str(error)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_chats_are_as_transformers_renders_them(tmp_path, name, chat):
    theirs, ours = save(tmp_path, TEMPLATES[name])
    task = Task(0, 0, row={}, **CHATS[chat])
    expected = outcome(task, theirs)
    assert outcome(task, ours) == expected
    # At least one template takes each chat.
    if name == "chatml":
        assert isinstance(expected, list)
        assert ours.decode(expected) == theirs.decode(expected)


def test_a_template_is_compiled_once_for_all_rows(tmp_path):
    _, ours = save(tmp_path, CHATML)
    _compiled.cache_clear()
    for chat in ("one", "tools", "one"):
        tokenize(Task(0, 0, row={}, **CHATS[chat]), ours)
    assert _compiled.cache_info().misses == 1


def test_a_template_in_the_config_and_in_the_shipped_and_tiny_models(tmp_path, tiny_model):
    theirs, ours = save(tmp_path, LLAMA)
    (tmp_path / "chat_template.jinja").unlink()
    path = tmp_path / "tokenizer_config.json"
    for template in (CHATML, [{"name": "default", "template": LLAMA}, {"name": "tool_use", "template": CHATML}]):
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
        theirs, ours = AutoTokenizer.from_pretrained(tmp_path), FolderTokenizer.load(tmp_path)
        for chat in ("one", "tools"):
            task = Task(0, 0, row={}, **CHATS[chat])
            assert tokenize(task, ours) == tokenize(task, theirs)
    task = Task(0, 0, row={}, **CHATS["turns"])
    theirs = AutoTokenizer.from_pretrained(tiny_model)
    assert (
        tokenize(task, tiny_tokenizer()) == tokenize(task, FolderTokenizer.load(tiny_model)) == tokenize(task, theirs)
    )


@pytest.mark.parametrize("keys", [{}, {"add_bos_token": True}])
def test_a_text_has_its_first_token_once(tmp_path, keys):
    theirs, ours = save(tmp_path, None, **keys)
    for text in ("two plus two", "<s>two", "<s><s>two"):
        tokens = tokenize(Task(0, 0, text, {}), theirs)
        assert tokens == tokenize(Task(0, 0, text, {}), ours)
        assert tokens.count(1) == 1


def test_a_chat_has_its_first_token_once(tmp_path):
    theirs, ours = save(tmp_path, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    for content in ("two", "<s>two"):
        task = Task(0, 0, [{"role": "user", "content": content}], {})
        assert tokenize(task, theirs) == tokenize(task, ours)
        assert tokenize(task, ours).count(1) == 1


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    assert FolderTokenizer.load(tmp_path) is None
    assert chat_template(tmp_path) is None


def test_variables_are_what_a_recipe_may_set():
    assert variables(CHATML) == {"tools", "enable_thinking"}
    assert variables(LLAMA) == set()


@pytest.mark.parametrize(
    "name", ["PreTrainedTokenizerFast", "TokenizersBackend", "Qwen2TokenizerFast", "GPT2Tokenizer"]
)
def test_classes_that_take_the_file_as_it_is(tmp_path, name):
    save(tmp_path, CHATML)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": name}))
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), FolderTokenizer.load(tmp_path)
    assert ours.is_exact
    for task in (Task(0, 0, row={}, **CHATS["tools"]), Task(0, 0, " two\n\nü <s>3", {})):
        assert tokenize(task, ours) == tokenize(task, theirs)


def test_of_other_classes_it_is_said(tmp_path):
    save(tmp_path, CHATML)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "LlamaTokenizer"}))
    assert not FolderTokenizer.load(tmp_path).is_exact
