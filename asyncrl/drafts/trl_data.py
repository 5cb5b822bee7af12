"""The data of a TRL script: `load_dataset(...)`, and the usual `.map(...)` that makes chats of questions."""

from __future__ import annotations

import ast
import re
from typing import Any

from asyncrl.drafts.carried import Carried, Unresolved
from asyncrl.drafts.script import Script, called

_FILES = {"json": ".jsonl", "csv": ".csv", "parquet": ".parquet", "arrow": ".arrow"}
_KEPT = ("shuffle", "select_columns", "remove_columns", "with_format")


def carry(script: Script, train: ast.expr | None, held_out: ast.expr | None, carried: Carried) -> None:
    """Sets `data`, and `eval` if the script has held-out rows."""
    if train is None:
        found = next((call for _, call in script.calls("load_dataset")), None)
        train = found
    if train is None:
        return
    _one(script, train, "train_dataset", "data", carried)
    if held_out is not None and script.value(held_out) is not None:
        _one(script, held_out, "eval_dataset", "eval.data", carried)
        if "eval" not in carried.keys:
            return
        said = {key: value for key, value in carried.keys.get("data", {}).items() if key in ("chat", "system")}
        carried.keys["eval"]["data"] = {k: v for k, v in carried.keys["eval"]["data"].items() if k not in said}


def _one(script: Script, node: ast.expr, name: str, key: str, carried: Carried) -> None:
    call, split, steps = _origin(script, node)
    carried.given[name] = Unresolved(ast.unparse(node))
    if call is None:
        carried.lost[name] = f"it comes from no load_dataset; say {key}.path"
        return
    given = {k: script.value(v) for k, v in script.keywords(call, ("path", "name")).items()}
    path, files = given.pop("path", None), given.pop("data_files", None)
    if not isinstance(path, str) or isinstance(files, Unresolved | dict):
        carried.lost[name] = f"which data it loads is only known when that script runs; say {key}.path"
        return
    said = given.pop("split", None) if split is None else split
    if isinstance(said, list):
        said = said[_place(script, node)]
    if isinstance(said, Unresolved):
        carried.given[f"split of {name}"] = said
        carried.lost[f"split of {name}"] = (
            f"it is only known when that script runs; say {key}.split, if it is not train"
        )
    source = ast.unparse(call)
    if path in _FILES and files:
        carried.put(f"{key}.path", files, source)
        carried.given["split"] = said if said not in (None, "train") else None
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
    for step in steps:
        _step(script, step, key, carried)
    if not carried.given.get("split", True):
        carried.given.pop("split")


def _place(script: Script, node: ast.expr) -> int:
    """In `train, test = load_dataset(..., split=[...])`."""
    while isinstance(node, ast.Name):
        if node.id in script.parts:
            return script.parts[node.id][1]
        node = _before(script, node)
    return 0


def _before(script: Script, node: ast.Name) -> ast.expr:
    """What a name was assigned, other than a change of itself."""
    found = script.assigned.get(node.id, ast.Constant(None))
    while isinstance(found, ast.Call) and isinstance(found.func, ast.Attribute) and called(found) != "load_dataset":
        found = found.func.value
    return found if not (isinstance(found, ast.Name) and found.id == node.id) else ast.Constant(None)


def _origin(script: Script, node: ast.expr) -> tuple[ast.Call | None, str | None, list[ast.Call]]:
    """The call of load_dataset, the split that is taken of it, and the calls that change its rows."""
    split, steps, seen = None, [], set()
    while True:
        match node:
            case ast.Call() if called(node) == "load_dataset":
                return node, split, steps
            case ast.Call(func=ast.Attribute(value=value)):
                steps.append(node)
                node = value
            case ast.Subscript(value=value, slice=ast.Constant(value=str(name))):
                node, split = value, name
            case ast.Name(id=name) if name not in seen:
                seen.add(name)
                steps += _changes(script, name, steps)
                calls = [c for _, c in script.calls("load_dataset")]
                loaded = script.parts[name][0] if name in script.parts else _loaded(script, name)
                node = loaded if loaded is not None else (calls[0] if len(calls) == 1 else ast.Constant(None))
            case _:
                return None, None, []


def _changes(script: Script, name: str, known: list[ast.Call]) -> list[ast.Call]:
    """`name = name.map(...)`."""
    found = []
    for statement in ast.walk(script.tree):
        if isinstance(statement, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in statement.targets
        ):
            value = statement.value
            while (
                isinstance(value, ast.Call)
                and isinstance(value.func, ast.Attribute)
                and called(value) != "load_dataset"
            ):
                if value not in known:
                    found.append(value)
                value = value.func.value
    return found


def _loaded(script: Script, name: str) -> ast.expr | None:
    """What a name was before it was changed."""
    for statement in ast.walk(script.tree):
        if isinstance(statement, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in statement.targets
        ):
            value = statement.value
            while (
                isinstance(value, ast.Call)
                and isinstance(value.func, ast.Attribute)
                and called(value) != "load_dataset"
            ):
                value = value.func.value
            if not (isinstance(value, ast.Name) and value.id == name):
                return value
    return None


def _step(script: Script, call: ast.Call, key: str, carried: Carried) -> None:
    """What a change of the rows comes to."""
    what = called(call)
    name = f"{key.removesuffix('.data')}.{what}(...)"
    carried.given[name] = Unresolved(ast.unparse(call)[:80])
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
