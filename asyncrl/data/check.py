"""Whether a recipe's data can be trained on: every prompt is read, and the first one shown as the model will see it.

Imports neither torch nor ray nor vllm, unless a user's own reward does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncrl.chat_template import FolderTokenizer
from asyncrl.data.demonstrations import Renderer
from asyncrl.data.hints import check_hints, first_hinted
from asyncrl.data.mixture import SOURCE_COLUMN, Mixture, Tasks
from asyncrl.data.source import Rows, load_rows
from asyncrl.data.tasks import TaskSource
from asyncrl.data.vocabulary import check_teachers_here
from asyncrl.errors import UserError
from asyncrl.models import TINY_LLAMA, load_tokenizer, local_config, tiny_tokenizer
from asyncrl.recipe.data import DataPart
from asyncrl.recipe.schema import Recipe
from asyncrl.rewards.load import load_part
from asyncrl.rewards.parts import of_source
from asyncrl.task import VERIFIERS, Task

_NUM_LAST = 4
_MAX_SHOWN_CHARS = 2000


def load_tasks(recipe: Recipe, base_dir: Path) -> Tasks:
    """The tasks of a recipe. Raises UserError if data cannot be read, or lacks the prompts or the reward's columns."""
    env = recipe.env
    if env is not None and env.path.startswith(VERIFIERS) and any(s.path != env.path for s in recipe.sources):
        raise UserError(f"env {env.path} plays its own tasks; set data.path={env.path}")
    tables = [load_rows(source, recipe.seed) for source in recipe.sources]
    _check_columns(recipe, base_dir, tables)
    check_hints(recipe, tables)
    tasks: Tasks
    num_answers = recipe.group_size if recipe.from_data else 0
    if isinstance(recipe.data, list):
        if env is not None and any(s.chat_template_kwargs != recipe.data[0].chat_template_kwargs for s in recipe.data):
            raise UserError("data: with env all sources need the same chat_template_kwargs; say them in each")
        tasks = Mixture(recipe.data, tables, recipe.seed, num_answers)
    else:
        tasks = TaskSource(tables[0], recipe.data, recipe.seed, num_answers)
    tasks.check_prompts()
    return tasks


def _check_columns(recipe: Recipe, base_dir: Path, tables: Sequence[Rows]) -> None:
    """Raises UserError if a source lacks a column that a reward of its tasks needs."""
    parts = recipe.reward_parts
    functions = [load_part(part, base_dir) for part in parts]
    for source, rows in zip(recipe.sources, tables, strict=True):
        mixed = isinstance(source, DataPart)
        columns = [*rows.column_names, *([SOURCE_COLUMN] if mixed and SOURCE_COLUMN not in rows.column_names else [])]
        for place in of_source(parts, source.label if isinstance(source, DataPart) else ""):
            functions[place].check_columns(columns)


def preview(recipe: Recipe, base_dir: Path) -> list[str]:
    """Lines with the first prompt. Raises UserError as a run would, for local data and models."""
    if away := [source.title for source in recipe.sources if not source.is_here]:
        return [f"prompt     of {', '.join(away)}: read and shown when the run starts"]
    tasks = load_tasks(recipe, base_dir)
    tokenizer = tokenizer_of(recipe, base_dir)
    if tokenizer is None:
        shares = [f"source     {line}" for line in tasks.described()]
        return [*shares, f"prompt     {recipe.model} has no tokenizer.json here: shown when the run starts"]
    _, tokens = tasks.first_prompt(tokenizer)
    if recipe.model != TINY_LLAMA:
        check_vocabulary(local_config(_folder(recipe.model, base_dir)), tokenizer, tokens)
    leave_out_long(recipe, tasks, tokenizer)
    task, tokens = tasks.first(tokenizer)
    shares = [f"source     {line}" for line in tasks.described()]
    check_teachers_here(recipe, base_dir, tokenizer)
    exact = "" if tokenizer.is_exact else " (by tokenizer.json; a run begins with its own count)"
    first = [f"prompt     {described(task, tokens, tokenizer)}{exact}", *rendered(tokens, tokenizer)]
    return [*shares, *first, *_hint_lines(recipe, task, tokenizer), *answer_lines(task, tokenizer)]


def _hint_lines(recipe: Recipe, task: Task, tokenizer: Any) -> list[str]:
    if (tokens := first_hinted(recipe, task, tokenizer)) is None:
        return []
    return [f"teacher    reads {len(tokens)} tokens before the completion", *rendered(tokens, tokenizer)]


def tokenizer_of(recipe: Recipe, base_dir: Path) -> Any:
    """The model's, without `transformers`; None if there is none here."""
    return tiny_tokenizer() if recipe.model == TINY_LLAMA else FolderTokenizer.load(_folder(recipe.model, base_dir))


def exact_tokenizer(recipe: Recipe, base_dir: Path) -> Any:
    """The model's, as a run has it."""
    here, folder = tokenizer_of(recipe, base_dir), base_dir / recipe.model
    if here is not None and here.is_exact:
        return here
    return load_tokenizer(str(folder) if folder.is_dir() else recipe.model)


def rendered(tokens: list[int], tokenizer: Any) -> list[str]:
    """A prompt's text, special tokens too, line by line; of a long one both ends."""
    return _shown(tokenizer.decode(tokens))


def answer_lines(task: Task, tokenizer: Any) -> list[str]:
    """Of each answer that the row has, what of it is learnt, with its text."""
    return [line for said, text in answers(task, tokenizer) for line in (f"answer     {said}", *_shown(text))]


def _shown(text: str) -> list[str]:
    if len(text) > _MAX_SHOWN_CHARS:
        half = _MAX_SHOWN_CHARS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"
    return [f"  | {line}" for line in text.split("\n")]


def answers(task: Task, tokenizer: Any) -> list[tuple[str, str]]:
    """Of each answer that the row has: what of it is learnt, and that as text, turn by turn."""
    found = []
    for sequences in Renderer(tokenizer).render(task):
        turns = [s.tokens[start:end] for s in sequences for start, end in s.learnt]
        ends = ", ".join(sorted({f"{turn[-1]} {tokenizer.decode([turn[-1]])!r}" for turn in turns}))
        parts = f" in {len(turns)} turns" if len(turns) > 1 else ""
        said = f"{sum(map(len, turns))} tokens are learnt{parts}, the last is {ends}"
        found.append((said, "\n".join(tokenizer.decode(turn) for turn in turns)))
    return found


def longest(recipe: Recipe) -> tuple[int, str]:
    """Most tokens of a prompt, or of a row with its answers, and the key that says so."""
    if recipe.from_data:
        return recipe.max_tokens, recipe.max_tokens_key
    return recipe.rollout.max_prompt_tokens, "rollout.max_prompt_tokens"


def leave_out_long(recipe: Recipe, tasks: Tasks, tokenizer: Any) -> None:
    """Leaves out what is too long or cannot be learnt. Raises UserError if that is all of the first rows."""
    most, key = longest(recipe)
    tasks.check_lengths(tokenizer, most, key, warn=False)
    tasks.leave_out(tokenizer, most)


def check_vocabulary(config: dict[str, Any], tokenizer: Any, tokens: list[int]) -> None:
    """Raises UserError if the model (by its config.json) has no embedding of what the tokenizer makes of text.
    `tokens`: of a prompt. Added tokens count only there: some models have more of them than embeddings (Gemma 3 1B that
    of an image), and are never given them."""
    num_embeddings = {**config, **(config.get("text_config") or {})}.get("vocab_size")
    added = tokenizer.added_tokens_decoder  # of mistral-common's class a method that raises
    ordinary = {*tokenizer.get_vocab().values()} - {*(added if isinstance(added, dict) else ())}
    largest = max(ordinary | {*tokens}, default=0)
    if num_embeddings is not None and largest >= num_embeddings:
        raise UserError(
            f"model: its tokenizer gives tokens up to {largest}, but its embedding has {num_embeddings} (vocab_size in "
            "config.json); take the tokenizer that the model was trained with"
        )


def described(task: Task, tokens: list[int], tokenizer: Any) -> str:
    """How long a prompt is, how it ends, and where it is from."""
    last = ", ".join(f"{token} {tokenizer.decode([token])!r}" for token in tokens[-_NUM_LAST:])
    return f"{len(tokens)} tokens, the last are {last}; {task.where.rstrip(',')}"


def _folder(model: str, base_dir: Path) -> Path:
    """Of a local model, or of a hub model's files that are here already."""
    if (base_dir / model).is_dir():
        return base_dir / model
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "tokenizer.json")
    return Path(found).parent if isinstance(found, str) else base_dir / model
