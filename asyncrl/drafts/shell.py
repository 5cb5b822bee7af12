"""A shell script that starts verl: its `key=value` overrides, with the variables in them. It is read, never run.

Of variables that `if` and `case` set, the branch `*)` counts, else the first; overrides in branches are not taken.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
from collections.abc import Iterator

_ASSIGNED = re.compile(r"^([A-Za-z_]\w*)(\+?)=(.*)$", re.DOTALL)
_OVERRIDE = re.compile(r"^[+~]{0,2}([A-Za-z_]\w*(?:\.[\w@/-]+)+)=(.*)$", re.DOTALL)
_SUM = re.compile(r"\$\(\(((?:[^()]|\([^()]*\))*)\)\)")
_OPENS, _CLOSES = {"if", "case", "for", "while"}, {"fi", "esac", "done"}


def overrides(text: str) -> tuple[dict[str, str], int]:
    """Values by key as the script says them, and how many in branches were not taken."""
    variables: dict[str, str] = {}
    guessed: set[str] = set()
    found: dict[str, str] = {}
    depth, skipped, is_default = 0, 0, False
    for words, is_code in _commands(text):
        if words[0] in _CLOSES:
            depth, is_default = max(0, depth - 1), False
            continue
        depth += words[0] in _OPENS
        if depth and words[-1].endswith(")"):
            is_default = words[-1] == "*)"
        for word in words:
            assigned = None if is_code else _ASSIGNED.match(word)
            if assigned and "." not in assigned[1]:
                name, more, value = assigned.groups()
                is_free = not depth or not variables.get(name) or (is_default and name in guessed)
                if is_free and not more:
                    if name in guessed:
                        variables.pop(name, None)
                    variables[name] = _expanded(value, variables)
                    if depth:
                        guessed.add(name)
            elif given := _OVERRIDE.match(word):
                skipped += depth > 0
                if not depth:
                    found[given[1]] = _expanded(given[2], variables)
    return found, skipped


def _commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """Words of each line, lines that a backslash joins taken as one; whether they are of an array or a call."""
    inside = False
    joined = re.sub(r"\\\s*\n", " ", text)
    for line in _SUM.sub(lambda match: match[0].replace(" ", ""), joined).splitlines():
        bare = re.sub(r"^(export|local|declare|readonly)\s+", "", line.strip())
        opened = re.match(r"^([A-Za-z_]\w*\+?=)\($|^([A-Za-z_]\w*\+?=)\((.*)\)$", bare)
        if opened:
            inside = opened[1] is not None
            bare = opened[3] or ""
        elif bare == ")":
            inside = False
            continue
        try:
            words = shlex.split(bare, comments=True)
        except ValueError:  # an open quote, of awk say
            continue
        if words:
            yield words, inside or opened is not None or (len(words) > 1 and not _ASSIGNED.match(words[0]))


def _expanded(text: str, variables: dict[str, str]) -> str:
    """`$NAME`, `${NAME}`, `${NAME:-default}` and `$((1 + 2))`; of others the text stays."""

    def one(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        known = variables.get(name) or (os.environ.get("HOME", "~") if name == "HOME" else "")
        return known or (_expanded(default, variables) if default is not None else match[0])

    for _ in range(3):
        text = re.sub(r"\$\{([A-Za-z_]\w*)(?::?-((?:[^{}]|\$\{[^{}]*\})*))?\}|\$([A-Za-z_]\w*)", one, text)
    return _SUM.sub(lambda match: _sum(match, variables), text)


def _sum(match: re.Match[str], variables: dict[str, str]) -> str:
    """Of whole numbers; the text, of what is no such sum."""
    try:
        number = _number(ast.parse(match[1].strip(), mode="eval").body, variables)
    except SyntaxError:
        number = None
    return match[0] if number is None else str(number)


def _number(node: ast.expr, variables: dict[str, str]) -> int | None:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name) if variables.get(name, "").isdecimal():
            return int(variables[name])
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _number(left, variables), _number(right, variables)
            if a is None or b is None or max(abs(a), abs(b)) > 10**9:
                return None
            kinds = {ast.Add: a + b, ast.Sub: a - b, ast.Mult: a * b, ast.Div: a // b if b else None}
            return kinds.get(type(op))
    return None
