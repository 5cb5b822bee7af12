"""A training script as it is written: calls, values, data, functions. It is parsed, never run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asyncrl.drafts.carried import Unresolved
from asyncrl.drafts.scopes import Binding, Scopes
from asyncrl.errors import UserError
from asyncrl.storage.small_files import read

_MOST_NODES = 10_000
"""Looked at for one value: names of names may double with each line."""
_MOST_DIGITS = 10**15
_MOST_CHARS = 10_000


class Script:
    """A Python file's syntax tree, and what its names stand for."""

    def __init__(self, path: Path) -> None:
        """Raises UserError for what cannot be read as Python."""
        try:
            text = read(path).decode()
            self.tree = ast.parse(text)
        except FileNotFoundError:
            raise UserError(f"import: {path} does not exist") from None
        except (OSError, ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise UserError(f"import: {path} cannot be read as Python: {error}") from error
        self.path = path
        self._scopes = Scopes(self.tree)
        self._left = 0
        """Nodes that may still be looked at."""

    def calls(self, *names: str) -> Iterator[tuple[str, ast.Call]]:
        """Calls of these functions or classes, in order."""
        found = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call) and called(node) in names]
        yield from ((called(node), node) for node in sorted(found, key=lambda node: node.lineno))

    def found(self, name: ast.Name) -> tuple[Binding | None, list[Binding]]:
        """What a name stands for where it is used, and changes of it that may have come in between."""
        return self._scopes.found(name)

    def resolved(self, node: ast.expr, depth: int = 20) -> ast.expr:
        """What a name is sure to stand for; the name, if that is only known when the script runs."""
        while isinstance(node, ast.Name) and depth:
            sure, doubtful = self.found(node)
            if sure is None or sure.value is None or sure.element is not None or doubtful:
                break
            node, depth = sure.value, depth - 1
        return node

    def set_later(self, node: ast.expr, use: ast.AST) -> Iterator[tuple[str, ast.expr]]:
        """`name.attribute = value` of a name before its use, in order; of one in a branch the value is the target."""
        if not isinstance(node, ast.Name):
            return
        sure, scope = self.found(node)[0], self._scopes.scope(node)
        for target, one in sorted(self._sets(node.id), key=lambda found: found[0].lineno):
            is_same = self._scopes.scope(target) is scope and self.found(target.value)[0] == sure
            if is_same and target.lineno < use.lineno:  # type: ignore[attr-defined]
                is_plain = isinstance(one, ast.Assign) and self._scopes.is_sure(one, use)
                yield target.attr, one.value if is_plain else target

    def _sets(self, name: str) -> Iterator[tuple[Any, Any]]:
        """Targets `name.attribute`, and their statements."""
        for one in ast.walk(self.tree):
            targets = one.targets if isinstance(one, ast.Assign) else [getattr(one, "target", None)]
            for target in targets if isinstance(one, ast.Assign | ast.AugAssign | ast.AnnAssign) else ():
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == name:
                    yield target, one

    def value(self, node: ast.expr) -> Any:
        """Of a literal, of what names of literals stand for, and of `torch.bfloat16` its last word."""
        self._left = _MOST_NODES
        return self._value(node)

    def _value(self, node: ast.expr) -> Any:
        node = self.resolved(node)
        self._left -= 1
        if self._left < 0:
            return Unresolved(text_of(node))
        match node:
            case ast.List(elts=items) | ast.Tuple(elts=items):
                values = [self._value(item) for item in items]
                return Unresolved(text_of(node)) if any(isinstance(v, Unresolved) for v in values) else values
            case ast.Dict(keys=names, values=items) if all(isinstance(name, ast.Constant) for name in names):
                values = [self._value(item) for item in items]
                if any(isinstance(v, Unresolved) for v in values):
                    return Unresolved(text_of(node))
                return {
                    str(name.value): v for name, v in zip(names, values, strict=True) if isinstance(name, ast.Constant)
                }
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords) if all(k.arg for k in keywords):
                return {str(k.arg): self._value(k.value) for k in keywords}
            case ast.BinOp(left=left, op=op, right=right):
                return _computed(self._value(left), op, self._value(right), node)
            case ast.BoolOp(op=ast.Or(), values=[ast.Attribute() | ast.Call(), default]):  # an option that is not given
                return self._value(default)
            case ast.Attribute(value=ast.Name(id="torch"), attr=name):
                return name
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return Unresolved(text_of(node))

    def keywords(self, call: ast.Call, positional: tuple[str, ...] = ()) -> dict[str, ast.expr]:
        """Arguments by name; those of `**dict(...)` too."""
        found: dict[str, ast.expr] = {}
        for place, one in enumerate(call.args):
            if isinstance(one, ast.Starred):
                found[text_of(one)] = one
                break
            found[positional[place] if place < len(positional) else f"argument {place + 1}"] = one
        for keyword in call.keywords:
            if keyword.arg:
                found[keyword.arg] = keyword.value
            elif isinstance(given := self.resolved(keyword.value), ast.Dict):
                found |= {
                    str(k.value): v
                    for k, v in zip(given.keys, given.values, strict=True)
                    if isinstance(k, ast.Constant)
                }
            else:
                found[f"**{text_of(keyword.value)}"] = keyword.value
        return found

    def function(self, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """Defined at the top, or in another."""
        found = (
            n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name == name
        )
        return next(found, None)

    def imported(self, name: str) -> str | None:
        """`package.module:name` of a name that is imported."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.level < 2:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return f"{node.module}:{alias.name}"
        return None


def called(node: ast.Call) -> str:
    """The last word of what is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def text_of(node: ast.AST) -> str:
    """As it is written; of what nests too deeply for that, dots."""
    try:
        return ast.unparse(node)
    except RecursionError:
        return "..."


def _computed(left: Any, op: ast.operator, right: Any, node: ast.expr) -> Any:
    numbers = all(isinstance(one, int | float) and abs(one) < _MOST_DIGITS for one in (left, right))
    texts = isinstance(left, str) and isinstance(right, str) and len(left) + len(right) < _MOST_CHARS
    if isinstance(op, ast.Add) and (numbers or texts):
        return left + right
    if numbers and isinstance(op, ast.Mult):
        return left * right
    if numbers and right and isinstance(op, ast.FloorDiv):
        return left // right
    return Unresolved(text_of(node))
