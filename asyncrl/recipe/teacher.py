"""The part of a recipe that names a teacher: a frozen model that says what it thinks of every sampled token."""

from __future__ import annotations

import string
from typing import Annotated, Any

from pydantic import BeforeValidator

from asyncrl.recipe.part import Part, PositiveInt, Seconds

PROMPT = "prompt"
"""In a hint: what the student is asked."""


class TeacherRecipe(Part):
    model: str
    """Local directory or hub name, of a model with the student's token ids; frozen, it lies beside the trained one.
    With `url` the name under which the server has it."""
    source: str = ""
    """Name of the data source whose tasks it teaches; default: those that have no teacher of their own."""
    hint: str | None = None
    """What the teacher alone reads after the prompt: a column of the data, or a text with columns in braces, such as
    `The answer is {answer}.` With `{prompt}` in it, it takes the prompt's place."""
    url: str | None = None
    """Of a vLLM server (`vllm serve`), such as `http://host:8000`, that scores what was sampled. Default: the trainer
    loads the model."""
    tokenizer: str | None = None
    """With `url`: local directory or hub name of the tokenizer, to compare the vocabularies; default: `model`."""
    api_key_variable: str = "VLLM_API_KEY"
    """With `url`: environment variable that holds the server's key; none is sent if it is not set."""
    timeout_s: Seconds = 120.0
    """With `url`: within which the server must have scored a trajectory, retries included. Else that is not taught."""
    concurrency: PositiveInt = 16
    """With `url`: requests that each generator has in flight."""

    @property
    def vocabulary(self) -> str:
        """Where its tokenizer is."""
        return (self.url and self.tokenizer) or self.model


def _each(value: Any) -> Any:
    """One teacher as a list, none as an empty one; a text is its model."""
    found = value if isinstance(value, list) else [] if value is None else [value]
    return [{"model": one} if isinstance(one, str) else one for one in found]


Teachers = Annotated[list[TeacherRecipe], BeforeValidator(_each)]


def teacher_of(teachers: list[TeacherRecipe], source: str) -> int | None:
    """Place of the one that teaches the tasks of a source; None: nobody does."""
    sources = [teacher.source for teacher in teachers]
    return next((sources.index(name) for name in (source, "") if name in sources), None)


def hint_parts(hint: str) -> list[tuple[str, str | None]]:
    """Pieces of text, each with the name of the column after it, or None. A name alone is that of a column. Raises
    ValueError for what is no template."""
    parts = [*string.Formatter().parse(hint)]
    if any(form or how for _, _, form, how in parts):
        raise ValueError("what is in braces has a colon or an exclamation mark")
    if any(name is not None and not name.strip() for _, name, _, _ in parts):
        raise ValueError("a pair of braces has no name in it")
    if len(parts) == 1 and parts[0][1] is None and " " not in hint.strip():
        return [("", hint.strip())]
    return [(said, name) for said, name, _, _ in parts]
