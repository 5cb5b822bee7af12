"""A model's tokenizer and chat template from its folder, without transformers: for `--dry-run`, which loads no torch.

Renders as `apply_chat_template` of transformers 5 does (utils/chat_template_utils.py);
tests/data/test_template.py compares the two.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from asyncrl.errors import UserError
from asyncrl.storage.small_files import MOST_TOKENIZER_BYTES, json_object, of_model, read

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_AS_IT_IS = ("PreTrainedTokenizer", "TokenizersBackend", "Qwen2Tokenizer", "GPT2Tokenizer")
_TEMPLATE_FILE = "chat_template.jinja"
_OTHER_TEMPLATES = "additional_chat_templates"
_ALWAYS_GIVEN = {"messages", "documents", "add_generation_prompt", "raise_exception", "strftime_now", *_SPECIAL}


class _Generation(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}`, which marks what the assistant said, is as its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    """Of each template once: compiling takes a hundred times as long as rendering a prompt."""
    return _environment().from_string(template)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def variables(template: str) -> set[str]:
    """Names that a template reads and that a recipe or a row may give it. Raises UserError if it is no template."""
    try:
        return jinja2.meta.find_undeclared_variables(_environment().parse(template)) - _ALWAYS_GIVEN
    except (jinja2.TemplateError, RecursionError) as error:
        raise UserError(f"model: its chat template is none: {error}; copy the model anew") from error


@dataclass(frozen=True)
class FolderTokenizer:
    """What prompts need of a tokenizer, by transformers' names."""

    chat_template: str | dict[str, str] | None
    special_tokens: dict[str, str]
    tokenizer: Any
    """tokenizers.Tokenizer."""
    adds_bos: bool | None
    """None: as tokenizer.json says."""
    is_exact: bool = True
    """Whether transformers takes tokenizer.json as it is, too; of Llama and Gemma it makes parts anew."""

    @classmethod
    def load(cls, folder: Path) -> FolderTokenizer | None:
        """None if the folder has no tokenizer.json. Raises UserError for a file that is none of its kind."""
        if not (path := folder / "tokenizer.json").is_file():
            return None
        from tokenizers import Tokenizer

        config = json_object(folder / "tokenizer_config.json")
        special = {**json_object(folder / "special_tokens_map.json"), **config}
        with of_model(folder / "tokenizer_config.json"):
            special = {name: _text_of(special[name]) for name in _SPECIAL if special.get(name)}
        with of_model(path):
            try:
                tokenizer = Tokenizer.from_buffer(read(path, MOST_TOKENIZER_BYTES))
            except Exception as error:  # of no other kind, in tokenizers
                raise ValueError(str(error)) from error
        return cls(
            chat_template=chat_template(folder),
            special_tokens=special,
            tokenizer=tokenizer,
            adds_bos=config.get("add_bos_token"),
            is_exact=str(config.get("tokenizer_class")).removesuffix("Fast") in _AS_IT_IS,
        )

    @property
    def bos_token_id(self) -> int | None:
        bos = self.special_tokens.get("bos_token")
        return None if bos is None else self.tokenizer.token_to_id(bos)

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        return self.tokenizer.get_added_tokens_decoder()

    def get_vocab(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    @property
    def eos_token_id(self) -> int | None:
        eos = self.special_tokens.get("eos_token")
        return None if eos is None else self.tokenizer.token_to_id(eos)

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        ids = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        bos = self.bos_token_id
        if add_special_tokens and self.adds_bos and bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        return SimpleNamespace(input_ids=ids)

    def get_chat_template(self, tools: Any = None) -> str:
        """Raises ValueError if there are several and no default."""
        templates = self.chat_template
        if not isinstance(templates, dict):
            return templates or ""
        name = "tool_use" if tools is not None and "tool_use" in templates else "default"
        if name not in templates:
            raise ValueError(f"there are the chat templates {', '.join(sorted(templates))}, and none is the default")
        return templates[name]

    def render(self, messages: list[dict[str, Any]], tools: Any = None, **variables: Any) -> str:
        given = {**self.special_tokens, "add_generation_prompt": True, **variables}
        template = _compiled(self.get_chat_template(tools))
        return template.render(messages=messages, tools=tools, documents=None, **given)

    def apply_chat_template(
        self, messages: list[dict[str, Any]], tools: Any = None, tokenize: bool = True, **variables: Any
    ) -> list[int] | str:
        variables.pop("return_dict", None)
        text = self.render(messages, tools, **variables)
        return self.tokenizer.encode(text, add_special_tokens=False).ids if tokenize else text

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def chat_template(folder: Path) -> str | dict[str, str] | None:
    """A local model's chat template, or those it has by name. The files win over the config, as in transformers."""
    files = {file.stem: file for file in (folder / _OTHER_TEMPLATES).glob("*.jinja")}
    if (folder / _TEMPLATE_FILE).is_file():
        files["default"] = folder / _TEMPLATE_FILE
    templates = {}
    for name, file in files.items():
        with of_model(file):
            templates[name] = read(file).decode()
    if templates:
        return templates["default"] if list(templates) == ["default"] else templates
    with of_model(config := folder / "tokenizer_config.json"):
        found = json_object(config).get("chat_template")
        return {str(one["name"]): str(one["template"]) for one in found} if isinstance(found, list) else found


def _text_of(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)
