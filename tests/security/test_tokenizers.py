"""The tokenizer of a run that one looks at is anyone's: at worst it is a sentence, and few tokens make short texts."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from asyncrl.errors import UserError
from asyncrl.models import load_tokenizer, tokenizer_here

GROWS = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 64}
STRIPS = {"type": "Strip", "content": "a", "start": 0, "stop": 50}
REGEX = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}
SPACES = {"type": "Replace", "pattern": {"String": "_"}, "content": " "}


def folder_of(folder: Path, decoder: Any = None, vocab: dict[str, int] | None = None, config: Any = None) -> str:
    folder.mkdir()
    model = {"type": "WordLevel", "vocab": vocab or {"<unk>": 0, "a": 1, "b_": 2}, "unk_token": "<unk>"}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor"))
    whole = {"version": "1.0", "added_tokens": [], **parts, "decoder": decoder, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 3}')
    return str(folder)


@pytest.mark.parametrize(
    "decoder",
    [GROWS, REGEX, {"type": "Sequence", "decoders": [SPACES, {"type": "Sequence", "decoders": [GROWS, GROWS]}]}],
    ids=["grows", "regex", "nested"],
)
def test_long_texts_of_few_tokens_are_refused(tmp_path: Path, decoder: Any) -> None:
    with pytest.raises(UserError, match="makes very long texts of tokens"):
        tokenizer_here(folder_of(tmp_path / "m", decoder))


def test_a_long_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="makes very long texts of tokens"):
        tokenizer_here(folder_of(tmp_path / "m", vocab={"<unk>": 0, "a" * 1000: 1}))


def test_an_ordinary_decoder_is_taken(tmp_path: Path) -> None:
    decoder = {"type": "Sequence", "decoders": [SPACES, {"type": "Fuse"}]}
    assert tokenizer_here(folder_of(tmp_path / "m", decoder)).decode([1, 2, 1]) == "ab a"


def test_a_panic_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot turn tokens into text"):
        tokenizer_here(folder_of(tmp_path / "m", STRIPS)).decode([1, 1])


@pytest.mark.parametrize(
    "config", [[], {"extra_special_tokens": 5}, {"auto_map": 5}, {"tokenizer_class": 5}, {"added_tokens_decoder": 5}]
)
@pytest.mark.parametrize("load", [load_tokenizer, tokenizer_here])
def test_a_configuration_of_any_kind_is_a_sentence_at_most(tmp_path: Path, config: Any, load: Any) -> None:
    with contextlib.suppress(UserError):
        load(folder_of(tmp_path / "m", config=config or [1]))
