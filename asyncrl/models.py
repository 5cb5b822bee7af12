"""Models on disk: tokenizers, and the tiny random model that tests and `recipes/tiny.yaml` use."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyncrl.chat_template import FolderTokenizer
from asyncrl.errors import UserError, is_of_the_program
from asyncrl.headers import read_headers
from asyncrl.storage.small_files import json_object, of_model

TINY_LLAMA = "random:tiny-llama"
TINY_CONTEXT = 512
"""Positions of that model."""
TINY_MODULES = (
    *("embed_tokens", "norm", "input_layernorm", "post_attention_layernorm", "q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
"""Last parts of the names of its modules."""
MODEL_FILE = "model.json"
"""In a run directory: the fingerprint of the model that the run began with."""
_SAMPLE_BYTES = 64
_MOST_TOKEN_CHARS, _MOST_GROWTH = 512, 8
_TINY_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def load_tokenizer(path: str):
    """The tokenizer beside the model, of the class its config names; UserError if there is none."""
    if odd := [file for file in Path(path).glob("*") if not (file.is_file() or file.is_dir())]:
        raise UserError(f"model: {odd[0]} is neither a file nor a folder; take it away, or name another model")
    with _of_tokenizer(path):
        if is_local(path) and _is_plain(Path(path)):
            from transformers import TokenizersBackend

            return TokenizersBackend.from_pretrained(path, local_files_only=True)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path, local_files_only=is_local(path), trust_remote_code=False)


def _is_plain(folder: Path) -> bool:
    """Whether AutoTokenizer would take the class for which tokenizer.json is all there is. To ask it is to import
    torch: 3 s and memory in each process of environments. For other models it has exceptions."""
    config = json_object(folder / "tokenizer_config.json")
    plain = config.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in config
    return plain and local_config(folder).get("model_type") == "llama"


@contextmanager
def _of_tokenizer(path: str, what: str = "could not be loaded"):
    """Its files are anyone's: whatever is raised becomes a UserError."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, UserError) or not is_of_the_program(error):
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"model: the tokenizer of {path} {what}: {why:.300}") from error


class TokensToText:
    """What there is to do with the tokenizer of a run that one looks at, whoever wrote it."""

    def __init__(self, tokenizer: Any, path: str) -> None:
        self._tokenizer, self._path = tokenizer, path

    def decode(self, ids: list[int]) -> str:
        """Raises UserError where the tokenizer fails."""
        with _of_tokenizer(self._path, "cannot turn tokens into text"):
            text: str = self._tokenizer.decode(ids)
            return text


def tokenizer_here(path: str) -> TokensToText:
    """The same of what is on this machine: no hub is asked, and a few tokens make no long text."""
    if (folder := folder_here(path)) is None:
        raise UserError(
            f"model: the tokenizer of {path} is not on this machine, and to look at a run nothing is fetched; "
            f"`hf download {shlex.quote(path)}` fetches it"
        )
    found = FolderTokenizer.load(folder)
    if found is not None and not _is_modest(found.tokenizer):
        raise UserError(
            f"model: the tokenizer of {path} makes very long texts of tokens; see what it is, and who wrote it"
        )
    return TokensToText(found or load_tokenizer(str(folder)), path)


def _is_modest(tokenizer: Any) -> bool:
    """Whether a token is short, and what is put in the place of others hardly longer."""
    if max(map(len, tokenizer.get_vocab()), default=0) > _MOST_TOKEN_CHARS:
        return False
    todo, growth = [json.loads(tokenizer.to_str()).get("decoder")], 1.0
    while todo:
        match todo.pop():
            case {"type": "Sequence", "decoders": list(more)}:
                todo += more
            case {"type": "Replace", "pattern": {"String": str(before)}, "content": str(after)}:
                growth *= max(1.0, len(after) / max(1, len(before)))
            case {"type": "Replace"}:
                return False
    return growth <= _MOST_GROWTH


def tiny_tokenizer() -> FolderTokenizer:
    """Of the tiny random model: its tokens are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special.values(), *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special.values()))
    return FolderTokenizer(_TINY_TEMPLATE, special, tokenizer, adds_bos=None)


def local_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model; {} if it has none here."""
    return json_object(folder / "config.json")


def hub_config(name: str) -> dict[str, Any]:
    """The same of a model of the hub. UserError if it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return json.loads(Path(hf_hub_download(name, "config.json")).read_text(encoding="utf-8"))
    except EntryNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"model: the config of {name} could not be loaded: {str(error).splitlines()[0]}") from error


def weight_files(path: str) -> list[Path]:
    """The safetensors files of a model that is on this machine; none if it has other files, or is not here yet."""
    if (folder := folder_here(path)) is None:
        return []
    index = folder / "model.safetensors.index.json"
    with of_model(index):
        names = set(json_object(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
        return [folder / name for name in sorted(names) if (folder / name).is_file()]


def folder_here(path: str) -> Path | None:
    """Of a local model, or of a hub's in its cache; None if it is not here yet."""
    if is_local(path):
        return Path(path)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(path, "config.json")
    except HFValidationError:  # no name that a hub could have
        return None
    return Path(config).parent if isinstance(config, str) else None


def is_local(path: str) -> bool:
    return os.path.isdir(path)


def fingerprint(model: str) -> str:
    """The same for two folders only if they hold the same model."""
    if not is_local(model):
        return model
    digest = hashlib.sha256(Path(model, "config.json").read_bytes())
    headers = read_headers(weight_files(model))
    for name, header in sorted(headers.items()):
        digest.update(f"{name} {header.dtype} {header.shape}\n".encode())
        with header.file.open("rb") as file:
            for start in (header.start, max(header.start, header.stop - _SAMPLE_BYTES)):
                file.seek(start)
                digest.update(file.read(min(_SAMPLE_BYTES, header.stop - start)))
    return digest.hexdigest()


def make_tiny_llama(folder: Path, seed: int) -> Path:
    """Write a random two-layer Llama (about 60 k parameters) with a byte-level tokenizer and a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    tokenizer = tiny_tokenizer()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer.tokenizer, **tokenizer.special_tokens)
    fast.chat_template = _TINY_TEMPLATE
    config = LlamaConfig(
        vocab_size=tokenizer.tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=TINY_CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    # A run says its phases in one place, and this takes a moment.
    disable_progress_bar()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
