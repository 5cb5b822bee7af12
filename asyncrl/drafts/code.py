"""Functions in a user's file, and the reward that is written for rows with answers.

A file is read here, not run: what it holds is found by `ast`.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from asyncrl.drafts.rows import Look
from asyncrl.errors import UserError
from asyncrl.storage.small_files import read

_REWARD_MARKS = {"completion", "completions", "solution_str", "solution_strs", "completion_ids"}
_REWARD_NAMES = ("reward", "reward_func", "reward_fn", "compute_score")
_ENV_NAMES = ("rollout", "run")


def reward_spec(said: str) -> str:
    """`FILE.py:name` of what `--reward` says; the name may be left out if the file has one reward, or one of the usual
    name. Raises UserError."""
    return _spec(said, "reward", _REWARD_NAMES)


def env_spec(said: str) -> str:
    """The same of `--env`."""
    return said if said.startswith("verifiers:") else _spec(said, "env", _ENV_NAMES)


def _spec(said: str, what: str, usual: Sequence[str]) -> str:
    if not said.endswith(".py"):
        if ":" not in said:
            raise UserError(f"new: --{what} {said} names no function; say FILE.py, FILE.py:NAME or package.module:NAME")
        return said
    found = list(_candidates(Path(said), what))
    chosen = [name for name in usual if name in found][:1] or found
    if len(chosen) != 1:
        kind = "a reward" if what == "reward" else "an environment"
        some = f"{len(found)} that may be meant ({', '.join(found)})" if found else f"none that looks like {kind}"
        raise UserError(f"new: --{what} {said} has {some}; say which function, as in {said}:NAME")
    return f"{said}:{chosen[0]}"


def _candidates(path: Path, what: str) -> Iterator[str]:
    try:
        tree = ast.parse(read(path).decode())
    except FileNotFoundError:
        raise UserError(f"new: --{what} {path} does not exist") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"new: --{what} {path} cannot be read as Python: {error}") from error
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
            marks = {one for name in ("__call__",) if name in methods for one in _takes(methods[name])}
            if {"reset", "step"} <= set(methods) if what == "env" else marks & _REWARD_MARKS:
                yield node.name
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            taken = _takes(node)
            if taken & _REWARD_MARKS if what == "reward" else "task" in taken and node.name[0] != "_":
                yield node.name


def _takes(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    return {one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}


def written_reward(found: Look, recipe: Path) -> str:
    """The text of a file with a reward for such rows: one line, by the ready one."""
    module, _, name = str(found.judge).rpartition(":")
    column, given = found.answer or "answer", "answer"
    if column == "reward_model":
        given = 'reward_model["ground_truth"]'
    elif column != "answer":
        given = column
    if name == "reasoning_gym":
        body, arguments = f"{name}(completion, **row)", "completion, **row"
    else:
        body, arguments = f"{name}(completion, {given})", f"completion, {column}, **row"
    guard = f"    if {given} is None or not str({given}).strip():\n        return None\n" if found.num_empty else ""
    return (
        f'"""The reward of {recipe.name}, to be changed: `row` has the other columns; None masks a completion."""'
        f"\n\nfrom {module} import {name}\n\n\ndef reward({arguments}):\n{guard}    return {body}\n"
    )


def from_folder(spec: str, folder: Path) -> str:
    """`FILE.py:name` as a recipe in the folder names it; what is no file stays as it is."""
    file, colon, name = spec.rpartition(":")
    if not file.endswith(".py"):
        return spec
    path = Path(file) if os.path.isabs(file) else Path(os.path.relpath(file, folder))
    return f"{path if path.is_absolute() or str(path).startswith('..') else f'./{path}'}{colon}{name}"
