"""`asyncrl new`: a recipe for some rows and this machine, checked before it is kept.

    rows -> prompt, answer   \\
    machine, model -> sizes   >  NAME.yaml (and NAME_reward.py)  ->  check, first prompt, reward on three rows
    --reward, --env          /
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncrl.chat_template import chat_template
from asyncrl.data.check import load_tasks, preview, tokenizer_of
from asyncrl.data.source import load_rows
from asyncrl.data.tasks import TaskSource
from asyncrl.drafts import code, machine, rows, trial, written
from asyncrl.errors import UserError
from asyncrl.models import TINY_CONTEXT, TINY_LLAMA, folder_here
from asyncrl.recipe.check import check, context_of
from asyncrl.recipe.data import TABLE_FILES, TEXT_FILES, DataRecipe
from asyncrl.recipe.load import load
from asyncrl.recipe.paths import leaves
from asyncrl.recipe.schema import Recipe
from asyncrl.storage.small_files import json_object
from asyncrl.task import MADE

_SMOL, _SMALL, _LARGER = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
)
_LARGE_GPU_GIB = 40
_CHARS_PER_TOKEN = 2
"""Fewer than there are, where no tokenizer is here to count."""
_TEMPLATE_TOKENS = 96
"""Room for a chat template's own, and a system message."""
_INSTRUCT = re.compile(r"instruct|chat|[-_]it\b|qwen3", re.IGNORECASE)


@dataclass(frozen=True)
class Wish:
    """What is asked for."""

    name: str
    data: str
    reward: str | None = None
    env: str | None = None
    model: str | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Draft:
    """What is to be written."""

    path: Path
    keys: dict[str, Any]
    found: rows.Look
    comments: dict[str, str] = field(default_factory=dict)
    reward: tuple[Path, str] | None = None
    """A file, and its text."""
    said: list[str] = field(default_factory=list)


def new(wish: Wish) -> list[str]:
    """Writes the recipe; lines that say what it is. Raises UserError, and then nothing is written."""
    path = _path(wish.name)
    draft = _drafted(wish, path)
    keys = written.overridden(draft.keys, wish.overrides)
    head = [f"Written by `asyncrl new` for {draft.said[0].partition(' ')[2].strip()}.", "Every key: docs/reference.md"]
    files = {path: written.text_of(keys, draft.comments, head)}
    if draft.reward:
        files[draft.reward[0]] = draft.reward[1]
    written.write_new(files)
    try:
        return [*draft.said, *_checked(path, draft.found, list(files))]
    except BaseException:
        written.remove(files)
        raise


def _path(name: str) -> Path:
    stem = Path(name.removesuffix(".yaml").removesuffix(".yml"))
    if not re.fullmatch(r"\.?[\w-][\w.-]*", stem.name):
        raise UserError(f"new: {name!r:.60} is no name for a recipe; take letters, digits and _.-")
    path = Path(os.path.normpath(stem.with_name(f"{stem.name}.yaml")))
    if path.exists():
        raise UserError(f"{path} exists, and is not written over; take another name, or move it away")
    return path


def _drafted(wish: Wish, path: Path) -> Draft:
    there = machine.here()
    if Path(wish.data).is_file() and not wish.data.endswith((*TEXT_FILES, *TABLE_FILES)):
        read = ", ".join((*TEXT_FILES, *TABLE_FILES))
        raise UserError(f"new: {wish.data} is of no kind that is read: {read}; write the rows to one of those")
    table = load_rows(DataRecipe(path=wish.data), 0)
    named = [one.partition("=")[2] for one in wish.overrides if one.startswith("data.prompt_column=")]
    found = rows.look(table, wish.data, named[-1] if named else None)
    model = wish.model or _model(there)
    said = [
        f"data       {wish.data}: {len(table)} row{'s' if len(table) != 1 else ''}",
        *rows.shown(found),
        f"machine    {there}",
    ]
    said.append(f"model      {model}" + ("" if wish.model else ", as none was named; --model says another"))
    learnt = not (wish.reward or wish.env) and found.judge is None and found.demonstrated
    keys: dict[str, Any] = {"model": model, "data": _data(wish.data, path, found, model, bool(learnt))}
    comments = {"data.chat": "the question as the user's message, in the model's chat template"}
    if learnt:
        what = "pairs of chosen and rejected" if learnt == "chosen" else f"answers in column '{learnt}'"
        said.append(f"task       {what} are learnt: nothing is sampled (docs/sft.md)")
        return Draft(
            path, keys | _of_demonstrations(learnt == "chosen", model), found, comments | _ABOUT_SFT, None, said
        )
    reward = _judged(wish, path, found, keys, said)
    shares = _shares(wish)
    on_gpus = any(shares.values()) if shares else there.num_gpus > 0
    keys |= _of_rl(on_gpus, table, found, model)
    draft = Draft(path, keys, found, comments | _ABOUT_RL, reward, said)
    if shares:
        said.append(f"division   as the command says: {', '.join(f'{key}={value}' for key, value in shares.items())}")
    else:
        _divide(draft, there)
    return draft


def _shares(wish: Wish) -> dict[str, Any]:
    """What the command says of GPUs, which the machine is then not divided by."""
    named = dict(leaves(written.overridden({}, wish.overrides)))
    return {key: named[key] for key in ("rollout.gpus_per_replica", "trainer.gpus_per_rank") if key in named}


def _model(there: machine.Machine) -> str:
    here = sorted(Path("models").glob("*/config.json"))
    if here:
        return str(here[0].parent)
    if not there.num_gpus:
        return _SMOL
    return _LARGER if there.num_gpus > 1 and there.gpu_gib >= _LARGE_GPU_GIB else _SMALL


def _data(data: str, path: Path, found: rows.Look, model: str, learnt: bool) -> dict[str, Any]:
    is_file = data.endswith((*TEXT_FILES, *TABLE_FILES)) and not data.startswith(MADE)
    where = os.path.relpath(data, path.parent) if is_file and not os.path.isabs(data) else data
    keys: dict[str, Any] = {"path": where}
    pairs = learnt and found.demonstrated == "chosen"
    if found.prompt not in rows.PROMPTS and not pairs:
        keys["prompt_column"] = found.prompt
    of_prompt = found.demonstrated == found.prompt
    if learnt and not pairs and not of_prompt and found.demonstrated not in ("completion", "answer", "response"):
        keys["completion_column"] = found.demonstrated
    if not found.is_chat and _has_template(model):
        keys["chat"] = True
    return keys


def _has_template(model: str) -> bool:
    if model == TINY_LLAMA:
        return True
    folder = folder_here(model)
    return bool(chat_template(folder)) if folder else bool(_INSTRUCT.search(model))


def _judged(wish: Wish, path: Path, found: rows.Look, keys: dict[str, Any], said: list[str]) -> tuple[Path, str] | None:
    """Sets `reward` and `env`; the file that has the reward, if one is to be written. Raises UserError."""
    if wish.env:
        keys["env"] = code.from_folder(code.env_spec(wish.env), path.parent)
    if wish.reward:
        keys["reward"] = code.from_folder(code.reward_spec(wish.reward), path.parent)
    if wish.reward or wish.env:
        return None
    if found.judge is None:
        columns = ", ".join(f"{c} ({found.odd})" if found.odd and c == found.answer else c for c in found.columns)
        raise UserError(
            f"new: {wish.data} has the columns {columns}, and no answers that a ready reward compares; name a function "
            "that judges completions: --reward FILE.py"
        )
    file = path.with_name(f"{path.stem.replace('-', '_').replace('.', '_')}_reward.py")
    keys["reward"] = f"./{file.name}:reward"
    said.append(f"reward     {found.judge.rpartition(':')[2]}, in {file}: change it there (docs/rewards.md)")
    return file, code.written_reward(found, path)


_ABOUT_SFT = {
    "groups_per_step": "rows in a batch",
    "max_steps": "a first guess, as the learning rate",
    "trainer.tokens_per_microbatch": "longer rows are left out",
    "rollout.engine": "nothing is sampled: the rows have the answers",
}
_ABOUT_RL = {
    "reward": "name another function, or change this one",
    "group_size": "completions of each prompt, which are compared",
    "groups_per_step": "prompts in a batch",
    "max_steps": "a first guess",
    "max_staleness": "updates that a trained token may be behind; 0: synchronous",
    "rollout.max_new_tokens": "longest completion",
    "rollout.max_prompt_tokens": "longer ones are left out",
    "trainer.learning_rate": "a first guess; `asyncrl sweep` tries several",
    "checkpoint.every_steps": "a run that died goes on from the newest: asyncrl resume",
}


def _of_demonstrations(pairs: bool, model: str) -> dict[str, Any]:
    keys: dict[str, Any] = {"groups_per_step": 16, "max_steps": 50, "rollout": {"engine": "data"}}
    if pairs:
        keys["algorithm"] = {"loss": "dpo"}
    rate = 5.0e-7 if pairs else 2.0e-5
    longest = min(4096, _context(model) or 4096)
    trainer = {"learning_rate": rate, "warmup_steps": 3, "tokens_per_microbatch": longest}
    return keys | {"trainer": trainer, "checkpoint": {"every_steps": 25}}


def _context(model: str) -> int | None:
    """Positions, as far as they are known here."""
    if model == TINY_LLAMA:
        return TINY_CONTEXT
    folder = folder_here(model)
    return context_of(json_object(folder / "config.json")) if folder else None


def _of_rl(on_gpus: bool, table: Any, found: rows.Look, model: str) -> dict[str, Any]:
    """Sizes. A completion has room for reasoning on GPUs."""
    context = _context(model)
    longest = found.longest_chars // _CHARS_PER_TOKEN + _TEMPLATE_TOKENS
    prompt = max(128, -(-longest // 64) * 64)
    answer = 512 if on_gpus else 64
    if context:
        answer = min(answer, context // 2)
        prompt = min(prompt, context - answer)
    rollout: dict[str, Any] = {"max_new_tokens": answer, "max_prompt_tokens": prompt}
    if not on_gpus:
        rollout["engine_args"] = {"enforce_eager": True}
    rate = 2.0e-6 if on_gpus else 2.0e-5
    trainer: dict[str, Any] = {"learning_rate": rate, "tokens_per_microbatch": max(4096, prompt + answer)}
    if on_gpus:
        trainer["gradient_checkpointing"] = True
    return {
        "group_size": 8,
        "groups_per_step": min(len(table), 32 if on_gpus else 8),
        "max_steps": 200 if on_gpus else 20,
        "max_staleness": 1,
        "rollout": rollout,
        "trainer": trainer,
        "checkpoint": {"every_steps": 20 if on_gpus else 10},
    }


def _divide(draft: Draft, there: machine.Machine) -> None:
    """Adds what the planner says of the GPUs."""
    recipe = Recipe.model_validate(draft.keys)
    keys, how = machine.divided(recipe, there, Path.cwd())
    for override in written.overridden({}, [f"{key}={value}" for key, value in keys.items()]).items():
        for key, value in leaves(override[1], override[0]):
            written.put(draft.keys, key, value)
    draft.said.append(f"division   {how}")


def _checked(path: Path, found: rows.Look, files: list[Path]) -> list[str]:
    """As `asyncrl train --dry-run` looks at it, and the reward on three rows."""
    recipe, base_dir = load(path), Path.cwd()
    check(recipe, base_dir)
    lines = preview(recipe, base_dir)
    if recipe.reward_parts and recipe.env is None:
        tasks = load_tasks(recipe, base_dir)
        assert isinstance(tasks, TaskSource)
        lines += trial.lines(recipe, tasks, base_dir, lambda row: rows.gold(row, found))
    if tokenizer_of(recipe, base_dir) is None:
        lines.append(f"caution    {recipe.model} is not on this machine, and is fetched when the run starts")
    return [
        *lines,
        f"wrote      {', '.join(map(str, files))}",
        "",
        "next:",
        f"  asyncrl train {path} --dry-run",
        f"  asyncrl train {path}",
    ]
