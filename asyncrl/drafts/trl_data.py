"""The data of a TRL script: `load_dataset(...)`, and the usual `.map(...)` that makes chats of questions."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any

from asyncrl.drafts.carried import Carried, Unresolved
from asyncrl.drafts.script import Script, called, text_of

_FILES = {"json": ".jsonl", "csv": ".csv", "parquet": ".parquet", "arrow": ".arrow"}
_MOST_STEPS = 200
_KEPT = ("shuffle", "select_columns", "remove_columns", "with_format")


@dataclass
class _Origin:
    """Where rows come from, and what is done with them."""

    call: ast.Call | None = None
    """Of load_dataset."""
    split: str | None = None
    """That is taken of it."""
    element: int | None = None
    """In `train, test = load_dataset(..., split=[...])`."""
    steps: list[ast.Call] = field(default_factory=list)
    """Calls that change the rows, the last first."""
    doubtful: list[ast.AST] = field(default_factory=list)
    """Changes in a branch, or in place."""

    @property
    def is_divided(self) -> bool:
        return any(called(step) == "train_test_split" for step in self.steps)


def carry(script: Script, train: ast.expr | None, held_out: ast.expr | None, carried: Carried) -> None:
    """Sets `data`, and `eval` if the script has held-out rows."""
    if train is None:
        return
    _one(script, train, "train_dataset", "data", carried)
    if held_out is None or script.value(held_out) is None:
        return
    if _origin(script, held_out).is_divided:
        carried.given["eval_dataset"] = Unresolved(text_of(held_out))
        carried.lost["eval_dataset"] = (
            "it is split off in the script; write both parts to files, and say eval.data.path"
        )
        return
    _one(script, held_out, "eval_dataset", "eval.data", carried)
    if "eval" not in carried.keys:
        return
    said = {key: value for key, value in carried.keys.get("data", {}).items() if key in ("chat", "system")}
    rows = {k: v for k, v in carried.keys["eval"]["data"].items() if k not in said}
    carried.keys["eval"]["data"] = rows
    if all(rows.get(key) == carried.keys.get("data", {}).get(key) for key in ("path", "split", "options")):
        del carried.keys["eval"]
        carried.kept.pop("eval_dataset")
        carried.lost["eval_dataset"] = "as far as it is known here, it is the training data; say eval.data.path"


def _one(script: Script, node: ast.expr, name: str, key: str, carried: Carried) -> None:
    origin = _origin(script, node)
    call, split = origin.call, origin.split
    carried.given[name] = Unresolved(text_of(node))
    if call is None:
        carried.lost[name] = f"it comes from no load_dataset; say {key}.path"
        return
    given = {k: script.value(v) for k, v in script.keywords(call, ("path", "name")).items()}
    path, files = given.pop("path", None), given.pop("data_files", None)
    if not isinstance(path, str) or isinstance(files, Unresolved | dict):
        carried.lost[name] = f"which data it loads is only known when that script runs; say {key}.path"
        return
    said = given.pop("split", None) if split is None else split
    if isinstance(said, list) and origin.element is not None and origin.element < len(said):
        said = said[origin.element]
    if said is not None and not isinstance(said, str):
        carried.given[f"split of {name}"] = said
        carried.lost[f"split of {name}"] = (
            f"it is only known when that script runs; say {key}.split, if it is not train"
        )
    source = text_of(call)
    if path in _FILES and files:
        carried.put(f"{key}.path", files, source)
        if isinstance(said, str) and said != "train":
            carried.given[f"split of {name}"] = said
            carried.lost[f"split of {name}"] = f"files are taken whole; write that part to a file, and say {key}.path"
    else:
        carried.put(f"{key}.path", path, source)
        if given.get("name"):
            carried.put(f"{key}.options", {"name": given.pop("name")})
        if isinstance(said, str) and said != "train":
            carried.put(f"{key}.split", said)
    carried.kept[name] = f"{key}.path"
    for option, value in given.items():
        if value is not None:
            carried.given[f"load_dataset {option}"] = value
            carried.lost[f"load_dataset {option}"] = f"an option of load_dataset; {key}.options takes such"
    for step in reversed(origin.steps):
        _step(script, step, key, carried)
    for place, change in enumerate(origin.doubtful):
        carried.given[f"change {place + 1} of {name}"] = Unresolved(text_of(change))
        carried.lost[f"change {place + 1} of {name}"] = (
            "it is in a branch or a loop of the script, and is not carried over"
        )


def _origin(script: Script, node: ast.expr) -> _Origin:
    """Follows names and methods back to load_dataset."""
    found = _Origin()
    for _ in range(_MOST_STEPS):
        match node:
            case ast.Call() if called(node) == "load_dataset":
                found.call = node
                return found
            case ast.Call(func=ast.Attribute(value=value)):
                found.steps.append(node)
                if called(node) == "train_test_split":  # its own parts are called train and test
                    found.split = None
                node = value
            case ast.Subscript(value=value, slice=index):
                split = script.value(index)
                node, found.split = value, split if found.split is None else found.split
            case ast.Name():
                sure, doubtful = script.found(node)
                found.doubtful += [one.node for one in doubtful]
                if sure is None or sure.value is None:
                    break
                node, found.element = sure.value, sure.element if sure.element is not None else found.element
            case _:
                break
    return _Origin()


def _step(script: Script, call: ast.Call, key: str, carried: Carried) -> None:
    """What a change of the rows comes to."""
    what = called(call)
    name = f"{key.removesuffix('.data')}.{what}(...)"
    while name in carried.given:
        name += "'"
    carried.given[name] = Unresolved(text_of(call))
    if what in _KEPT:
        carried.moot[name] = "a recipe shuffles by itself, and columns that are not read are no matter"
        return
    function = (
        script.function(call.args[0].id) if what == "map" and call.args and isinstance(call.args[0], ast.Name) else None
    )
    found = _chat(script, function) if function else None
    if found is None:
        carried.lost[name] = (
            "rows are not changed here; write them to a file as the script does, and name it in data.path"
        )
        return
    column, system, others = found
    carried.put(f"{key}.prompt_column", column)
    carried.put(f"{key}.chat", True, f"as {call.args[0].id} makes chats" if isinstance(call.args[0], ast.Name) else "")
    if system:
        carried.put(f"{key}.system", system)
    carried.kept[name] = f"{key}.chat, {key}.prompt_column" + (f", {key}.system" if system else "")
    if others:
        carried.given[f"columns of {name}"] = others
        carried.lost[f"columns of {name}"] = "they are made in the script; work them out in the reward, from the row"


def _chat(script: Script, function: ast.AST) -> tuple[str, str, list[str]] | None:
    """Column, system message and other columns of a function that returns `{"prompt": [messages]}`; None: it does
    something else."""
    returned = next(
        (n.value for n in ast.walk(function) if isinstance(n, ast.Return) and isinstance(n.value, ast.Dict)), None
    )
    made = (
        {k.value: v for k, v in zip(returned.keys, returned.values, strict=True) if isinstance(k, ast.Constant)}
        if returned
        else {}
    )
    messages = made.pop("prompt", None)
    if not isinstance(messages, ast.List):
        return None
    column, system = "", ""
    for message in messages.elts:
        if not isinstance(message, ast.Dict):
            return None
        said = {k.value: v for k, v in zip(message.keys, message.values, strict=True) if isinstance(k, ast.Constant)}
        role, content = script.value(said.get("role", ast.Constant(None))), said.get("content", ast.Constant(None))
        text: Any = script.value(content)
        if role == "system" and isinstance(text, str):
            system = text
        elif role == "user" and (found := re.fullmatch(r"\w+\[['\"](.+)['\"]\]", ast.unparse(content))):
            column = found[1]
        else:
            return None
    return (column, system, [str(name) for name in made]) if column else None
