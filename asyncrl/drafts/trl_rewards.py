"""The rewards of a TRL script: its own are copied, those of `trl.rewards` have an equal, a name is a model."""

from __future__ import annotations

import ast
from typing import Any

from asyncrl.drafts.carried import Carried, Unresolved
from asyncrl.drafts.copied import source
from asyncrl.drafts.script import Script, called, text_of

_ACCURACY = """from asyncrl.rewards.math import math_verify


def {name}(completion, solution, **row):
    return math_verify(completion, solution)
"""
_THINK = r"<think>(?!.*<think>)(.*?)</think>.*"
"""TRL 1.16, rewards/format_rewards.py: one thought, which is closed."""


def carry(script: Script, node: ast.expr | None, weights: Any, carried: Carried, files: dict[str, str]) -> None:
    """Sets `reward`; functions go into the file that ends with `_reward.py`."""
    if node is None:
        return
    carried.given["reward_funcs"] = Unresolved(text_of(node))
    if weights is not None:
        carried.given["reward_weights"] = weights
    listed = script.resolved(node)
    items = listed.elts if isinstance(listed, ast.List | ast.Tuple) else [listed]
    own: list[str] = []
    parts: list[dict[str, Any]] = []
    for item in items:
        found = _part(script, item, own, files)
        if found is None:
            carried.given[text_of(item)] = Unresolved("a reward")
            carried.lost[text_of(item)] = (
                "it is no function of this file, nor one that is imported; say reward=FILE.py:NAME"
            )
        else:
            parts.append(found)
    if own:
        text, missing = source(script, own)
        if missing:
            carried.given["the copied rewards"] = Unresolved(", ".join(own))
            carried.lost["the copied rewards"] = (
                f"they use {', '.join(missing)}, which the script loads or builds: add that to the file of the rewards"
            )
        files["_reward.py"] = text + ("\n\n" + files["_reward.py"] if "_reward.py" in files else "")
    if not parts:
        return
    if isinstance(weights, list) and len(weights) == len(parts) == len(items):
        for part, weight in zip(parts, weights, strict=True):
            part["weight"] = float(weight)
        carried.kept["reward_weights"] = "reward: weight"
    plain = len(parts) == 1 and set(parts[0]) == {"fn"}
    carried.put(
        "reward", parts[0]["fn"] if plain else [p["fn"] if set(p) == {"fn"} else p for p in parts], "reward_funcs"
    )
    carried.kept["reward_funcs"] = "reward"


def _part(script: Script, item: ast.expr, own: list[str], files: dict[str, str]) -> dict[str, Any] | None:
    node = script.resolved(item)
    name = node.id if isinstance(node, ast.Name) else ""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {"fn": "asyncrl.rewards.model:SequenceClassifier", "kwargs": {"model": node.value}}
    if isinstance(node, ast.Call) and called(node) == "get_soft_overlong_punishment":
        given = {
            k: script.value(v) for k, v in script.keywords(node, ("max_completion_len", "soft_punish_cache")).items()
        }
        kwargs = {"max_tokens": given.get("max_completion_len"), "buffer_tokens": given.get("soft_punish_cache")}
        return {"fn": "asyncrl.rewards.shaping:soft_overlong", "kwargs": kwargs}
    if name and script.function(name):
        own.append(name)
        return {"fn": f"./_reward.py:{name}"}
    spec = script.imported(name) if name else None
    if spec and spec.startswith("trl.rewards"):
        ready = spec.rpartition(":")[2]
        if ready == "accuracy_reward":
            files["_reward.py"] = _ACCURACY.format(name=name)
            return {"fn": f"./_reward.py:{name}"}
        if ready == "think_format_reward":
            return {"fn": "asyncrl.rewards.shaping:matches", "name": name, "kwargs": {"pattern": _THINK}}
        return None
    if spec is None:
        return None
    module, _, function = spec.rpartition(":")
    file = f"{module.lstrip('.').replace('.', '/')}.py"
    return {"fn": f"./{file}:{function}" if (script.path.parent / file).exists() else spec}
