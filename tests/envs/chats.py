"""Tokenizers and chat templates for the tests of this room: what those of known families do, in a few lines each."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
)
"""As Qwen2.5 and SmolLM2: a system text of its own where there is none."""

_CALLS = (
    "{% for c in m.tool_calls or [] %}"
    """{{ '<tool_call>{"name": "' + c.function.name + '", "arguments": ' }}"""
    "{{ c.function.arguments | tojson + '}</tool_call>' }}"
    "{% endfor %}"
)

THINKING = (
    "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' }}"
    "{% if m.role == 'assistant' and m.reasoning_content and loop.index0 > ns.last %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{% if m.role == 'tool' %}{{ '<tool_response>' + m.content + '</tool_response>' }}"
    "{% else %}{{ m.content }}{% endif %}"
    + _CALLS
    + "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""As Qwen3: thoughts before the last question are dropped, tool results are the user's."""

HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""As Llama 3: a BOS in the template, texts trimmed, nothing after the end of a turn."""

INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role in ('user', 'tool') %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}{{ raise_exception('no system here') }}"
    "{% endif %}{% endfor %}"
)
"""As Mistral: no opening for the assistant, and no system message."""

TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""As Gemma."""

NO_END = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""Nothing ends a turn."""

TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>"),
    "default system": (DEFAULT_SYSTEM, "<|im_end|>"),
    "thinking": (THINKING, "<|im_end|>"),
    "headers": (HEADERS, "<|eot_id|>"),
    "inst": (INST, "</s>"),
    "turns": (TURNS, "<end_of_turn>"),
}
"""Template and what ends a turn."""

_MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>"]
_SPECIAL = ["<s>", "</s>", *_MARKS, "<end_of_turn>", "[INST]", "[/INST]"]
NEXT_ENDS = (
    "{% for m in messages %}{{ ('<|im_start|>' if m.role == 'user' else '<|im_end|>') + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|>' }}{% endif %}"
)
"""As GLM-4: a turn is ended by the mark that begins the next one."""


def tokenizer(template: str | None, eos: str = "</s>", pairs: tuple[str, ...] = ()) -> Any:
    """Its tokens are bytes, those above, `ll` and `hello`, so that text has more than one spelling, and the pairs of
    two characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = ["ll", "he", "hell", "hello"]
    vocabulary = {token: i for i, token in enumerate([*_SPECIAL, *alphabet, *merged, *pairs])}
    merges = [("l", "l"), ("h", "e"), ("he", "ll"), ("hell", "o"), *((a, b) for a, b in pairs)]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(_SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token=eos, additional_special_tokens=_MARKS, chat_template=template
    )
