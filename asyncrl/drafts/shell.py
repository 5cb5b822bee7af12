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
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1[^\n]*\n.*?^\s*\2\s*$", re.DOTALL | re.MULTILINE)
_OPENS, _CLOSES = {"if", "case", "for", "while", "until", "select"}, {"fi", "esac", "done"}
_BEFORE = {"then", "else", "elif", "do", "{", "!", "exec", "time", "eval"}
_CALL = re.compile(r"(^|[./])main_\w+(\.py)?$")
"""verl.trainer.main_ppo, and its kin such as recipe.dapo.main_dapo."""
_MOST_CHARS = 10_000
"""Of a value: one that grows beyond with its variables stays as it is written."""


def overrides(text: str) -> tuple[dict[str, str], int]:
    """Values by key as the script says them, and how many in branches were not taken. Of a script that calls verl those
    of the call count, wherever it stands, and those of arrays. Raises Several if it calls verl several times."""
    commands = list(_commands(_HEREDOC.sub("", text)))
    calls = [words for words, is_array in commands if not is_array and any(map(_CALL.search, words))]
    if len(calls) > 1:
        raise Several(len(calls))
    variables: dict[str, str] = {}
    guessed: set[str] = set()
    found: dict[str, str] = {}
    depth, skipped, is_default = 0, 0, False
    for words, is_array in commands:
        if words[0] in _CLOSES:
            depth, is_default = max(0, depth - 1), False
            continue
        depth += words[0] in _OPENS
        if depth and words[-1].endswith(")"):
            is_default = words[-1] == "*)"
        if not is_array and all(map(_ASSIGNED.match, words)) and not any(map(_OVERRIDE.match, words)):
            for word in words:
                _assign(word, variables, guessed, depth, is_default)
            continue
        is_call = words in calls
        is_rest = bool(_OVERRIDE.match(words[0]))  # of a call, behind a line without its backslash
        for word in _spread(words, variables) if is_call else words:
            if (given := _OVERRIDE.match(word)) and (is_call or is_array or is_rest or not calls):
                skipped += depth > 0 and not is_call
                if not depth or is_call:
                    found[given[1]] = _expanded(given[2], variables)
    return found, skipped


class Several(Exception):
    """Calls of verl, and how many."""


def _assign(word: str, variables: dict[str, str], guessed: set[str], depth: int, is_default: bool) -> None:
    assigned = _ASSIGNED.match(word)
    assert assigned
    name, more, value = assigned.groups()
    is_free = not depth or not variables.get(name) or (is_default and name in guessed)
    if is_free and not more:
        if name in guessed:
            variables.pop(name, None)
        variables[name] = _expanded(value, variables)
        if depth:
            guessed.add(name)


def _spread(words: list[str], variables: dict[str, str]) -> Iterator[str]:
    """With the words of variables that stand alone, as in `main_ppo $ARGS`."""
    for word in words:
        named = re.fullmatch(r"\$\{?([A-Za-z_]\w*)\}?", word)
        yield from variables.get(named[1], "").split() if named else [word]


def _commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """Words of each command, lines that a backslash joins taken as one; whether they are of an array."""
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
        is_array = inside or opened is not None
        for words in _words(bare):
            yield words, is_array


def _words(line: str) -> Iterator[list[str]]:
    """Of the commands in a line: `;`, `&&` and `||` are between them, `then` and such before."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    words: list[str] = []
    try:
        for word in (*lexer, ";"):
            if word.strip(";&|"):
                if words or word not in _BEFORE:
                    words.append(word)
            elif words:
                yield words
                words = []
    except ValueError:  # an open quote, of awk say
        return


def _expanded(text: str, variables: dict[str, str]) -> str:
    """`$NAME`, `${NAME}`, `${NAME:-default}` and `$((1 + 2))`; of others the text stays."""

    def one(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        known = variables.get(name) or (os.environ.get("HOME", "~") if name == "HOME" else "")
        return known or (_expanded(default, variables) if default is not None else match[0])

    said = text
    for _ in range(3):
        text = re.sub(r"\$\{([A-Za-z_]\w*)(?::?-((?:[^{}]|\$\{[^{}]*\})*))?\}|\$([A-Za-z_]\w*)", one, text)
        if len(text) > _MOST_CHARS:
            return said
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
