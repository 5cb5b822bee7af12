"""Tokenizers on disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from asyncrl.models import load_tokenizer

MESSAGES = [{"role": "user", "content": "2+2="}]


@pytest.mark.parametrize("name", ["TokenizersBackend", "PreTrainedTokenizerFast", "LlamaTokenizer"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma2", "deepseek_v3"])
def test_the_tokenizer_is_the_one_that_transformers_chooses(
    tiny_model: Path, tmp_path: Path, model_type: str, name: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    for file, change in (
        ("config.json", {"model_type": model_type}),
        ("tokenizer_config.json", {"tokenizer_class": name}),
    ):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    ours, theirs = load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert type(ours) is type(theirs)
    assert ours("say [END]").input_ids == theirs("say [END]").input_ids
    assert ours.apply_chat_template(MESSAGES) == theirs.apply_chat_template(MESSAGES)
    assert ours.special_tokens_map == theirs.special_tokens_map


def test_a_plain_tokenizer_takes_no_torch(tiny_model: Path) -> None:
    code = (
        "import sys; from asyncrl.models import load_tokenizer; "
        f"load_tokenizer({str(tiny_model)!r})('a'); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
