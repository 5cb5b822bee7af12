"""`asyncrl import`: another system's script or configuration as a recipe, and what of it could not be carried over."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asyncrl.drafts import machine, trl, verl, written
from asyncrl.drafts.carried import Carried
from asyncrl.drafts.code import from_folder
from asyncrl.errors import UserError
from asyncrl.recipe.data import TABLE_FILES, TEXT_FILES
from asyncrl.recipe.load import load
from asyncrl.recipe.paths import leaves
from asyncrl.task import DATA

SYSTEMS = ("trl", "verl")
_FIRST = (
    "model",
    "data",
    "eval",
    "reward",
    "env",
    "group_size",
    "groups_per_step",
    "max_steps",
    "max_staleness",
    "run_dir",
)


def convert(system: str, path: Path, out: Path | None, processes: int, overrides: Sequence[str]) -> list[str]:
    """Writes the recipe; lines that say what was done with each name. Raises UserError, and then nothing is written."""
    out = out or Path(f"{path.stem}.yaml")
    if out == path:
        out = Path(f"{path.stem}_asyncrl.yaml")
    if out.exists():
        raise UserError(f"{out} exists, and is not written over; take another name, or move it away")
    said = written.overridden({}, overrides)
    carried, files = trl.read(path, processes, said) if system == "trl" else verl.read(path, said)
    keys = _beside(carried.keys, path, out, files)
    for key, value in _gpus(keys) if system == "trl" else ():
        written.put(keys, key, value)
        carried.comments[key] = "of this machine"
    for given, other in (("max_steps", "max_epochs"), ("max_epochs", "max_steps")):
        if given in said:
            keys.pop(other, None)
    if is_sampled := keys.get("rollout", {}).get("engine") != DATA:
        keys["max_staleness"] = 0
        carried.comments["max_staleness"] = f"as {carried.system}: sampling and training take turns; 1 overlaps them"
    keys = written.overridden(keys, overrides)
    by_command = {key for key, _ in leaves(said) if key}
    carried.comments |= dict.fromkeys(by_command, "as the command says")
    keys = {key: keys[key] for key in sorted(keys, key=_order)}
    for name, key in (("model", "model"), ("train_dataset", "data.path"), ("data.train_files", "data.path")):
        if name in carried.lost and key in by_command:
            carried.lost.pop(name)
            carried.kept[name] = key
    for name, keys_of_it in list(carried.kept.items()):
        if by_command.issuperset(keys_of_it.split(", ")):
            carried.moot[name] = f"the command says {carried.kept.pop(name)}"
    for key in ("model", "data"):
        if not keys.get(key):
            name = "data.path" if key == "data" else key
            why = next((f" ({line})" for line in carried.not_carried() if line.startswith((key, "train_dataset"))), "")
            raise UserError(
                f"import: {path} does not say {name}{why}; say it: asyncrl import {system} {path} {name}=..."
            )
    lost = list(carried.not_carried())
    head = [f"Written by `asyncrl import {system}` from {path.name}. Every key: docs/reference.md"]
    head += ["Not carried over, or to be looked at:", *(f"  {line}" for line in lost)] if lost else []
    texts = {out: written.text_of(keys, carried.comments, head)}
    texts |= {out.with_name(f"{_stem(out)}{end}"): text for end, text in files.items()}
    written.write_new(texts)
    try:
        load(out)
    except UserError as error:
        written.remove(texts)
        why = str(error).replace(f"{out}: ", "", 1)
        if named := [key for key in by_command if key in why]:
            raise UserError(f"import: command line, {named[0]}: {why.removeprefix(named[0]).lstrip(': ')}") from error
        raise UserError(f"import: what {path} says makes no recipe: {why}") from error
    except BaseException:
        written.remove(texts)
        raise
    in_turns = is_sampled and not keys["max_staleness"]
    return [*carried.lines(), *_summary(carried, texts, out, in_turns)]


def _order(key: str) -> int:
    return _FIRST.index(key) if key in _FIRST else len(_FIRST)


def _stem(out: Path) -> str:
    return re.sub(r"\W", "_", out.stem)


def _beside(keys: dict[str, Any], path: Path, out: Path, files: dict[str, str]) -> dict[str, Any]:
    """Files that their script names by paths from where it lies, as the recipe names them."""

    def code(spec: str) -> str:
        if spec.startswith("./_reward.py:"):
            return spec.replace("./_", f"./{_stem(out)}_")
        file = spec.rpartition(":")[0]
        own = path.parent / file
        return (
            from_folder(f"{own}:{spec.rpartition(':')[2]}", out.parent)
            if file.endswith(".py") and own.exists()
            else spec
        )

    def rows(one: str) -> str:
        own = path.parent / one
        is_near = one.endswith((*TEXT_FILES, *TABLE_FILES)) and not os.path.isabs(one) and own.exists()
        return os.path.relpath(own, out.parent) if is_near else one

    changed = dict(keys)
    reward = keys.get("reward")
    if isinstance(reward, str):
        changed["reward"] = code(reward)
    elif isinstance(reward, list):
        changed["reward"] = [code(one) if isinstance(one, str) else {**one, "fn": code(one["fn"])} for one in reward]
    for part in (changed.get("data"), changed.get("eval", {}).get("data")):
        if part and "path" in part:
            part["path"] = [*map(rows, part["path"])] if isinstance(part["path"], list) else rows(part["path"])
    return changed


def _gpus(keys: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Of this machine, as a TRL script says nothing of them: halves, or shares of one."""
    there = machine.here()
    if not there.num_gpus:
        return
    from asyncrl.recipe.schema import Recipe

    try:
        division, _ = machine.divided(Recipe.model_validate(keys), there, Path.cwd())
    except ValueError:  # it is said later, in a sentence
        return
    for key, value in written.overridden({}, [f"{key}={value}" for key, value in division.items()]).items():
        yield from leaves(value, key)


def _summary(carried: Carried, files: dict[Path, str], out: Path, in_turns: bool) -> Iterator[str]:
    kept, moot, lost = map(len, (carried.kept, carried.moot, carried.lost))
    yield f"{kept} carried over, {moot} not needed, {lost} not carried over: those are at the head of {out} too"
    if in_turns:
        yield f"in turns   as {carried.system}, with max_staleness=0; max_staleness=1 overlaps sampling and training"
    yield f"wrote      {', '.join(map(str, files))}"
    yield ""
    yield "next:"
    yield f"  asyncrl train {out} --dry-run"
    yield f"  asyncrl train {out}"
