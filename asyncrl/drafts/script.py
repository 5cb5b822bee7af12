"""A training script as it is written: calls, values, data, functions. It is parsed, never run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asyncrl.drafts.carried import Unresolved
from asyncrl.errors import UserError
from asyncrl.storage.small_files import read


class Script:
    """A Python file's syntax tree, and what its names stand for."""

    def __init__(self, path: Path) -> None:
        """Raises UserError for what cannot be read as Python."""
        try:
            text = read(path).decode()
            self.tree = ast.parse(text)
        except FileNotFoundError:
            raise UserError(f"import: {path} does not exist") from None
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"import: {path} cannot be read as Python: {error}") from error
        self.path = path
        self.assigned: dict[str, ast.expr] = {}
        """By name: the last value that an assignment gives it, at the top or in a function."""
        self.parts: dict[str, tuple[ast.expr, int]] = {}
        """The same of `a, b = ...`: the value of all, and the place."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, node.value)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.assigned[target.id] = value
        elif isinstance(target, ast.Tuple):
            for place, one in enumerate(target.elts):
                if isinstance(one, ast.Name):
                    self.parts[one.id] = value, place

    def calls(self, *names: str) -> Iterator[tuple[str, ast.Call]]:
        """Calls of these functions or classes, in order."""
        found = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call) and called(node) in names]
        yield from ((called(node), node) for node in sorted(found, key=lambda node: node.lineno))

    def resolved(self, node: ast.expr, depth: int = 8) -> ast.expr:
        """What a name stands for."""
        while isinstance(node, ast.Name) and node.id in self.assigned and depth:
            node, depth = self.assigned[node.id], depth - 1
        return node

    def value(self, node: ast.expr) -> Any:
        """Of a literal, of what names of literals stand for, and of `torch.bfloat16` its last word."""
        node = self.resolved(node)
        match node:
            case ast.List(elts=items) | ast.Tuple(elts=items):
                values = [self.value(item) for item in items]
                return Unresolved(ast.unparse(node)) if any(isinstance(v, Unresolved) for v in values) else values
            case ast.Dict(keys=names, values=items) if all(isinstance(name, ast.Constant) for name in names):
                values = [self.value(item) for item in items]
                if any(isinstance(v, Unresolved) for v in values):
                    return Unresolved(ast.unparse(node))
                return {
                    str(name.value): v for name, v in zip(names, values, strict=True) if isinstance(name, ast.Constant)
                }
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords) if all(k.arg for k in keywords):
                return {str(k.arg): self.value(k.value) for k in keywords}
            case ast.BinOp(left=left, op=op, right=right):
                return _computed(self.value(left), op, self.value(right), node)
            case ast.BoolOp(op=ast.Or(), values=[*_, default]):  # of an option that is not given
                return self.value(default)
            case ast.Attribute(value=ast.Name(id="torch"), attr=name):
                return name
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return Unresolved(ast.unparse(node))

    def keywords(self, call: ast.Call, positional: tuple[str, ...] = ()) -> dict[str, ast.expr]:
        """Arguments by name; those of `**dict(...)` too."""
        found = dict(zip(positional, call.args, strict=False))
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
                found[f"**{ast.unparse(keyword.value)}"] = keyword.value
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
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return f"{node.module}:{alias.name}"
        return None

    def source(self, names: list[str]) -> str:
        """The text of functions with all that they use of this file: imports, constants, other functions."""
        wanted, statements = [*names], {}
        functions = [n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        around = [f for f in functions if any(getattr(statement, "name", None) in names for statement in f.body)]
        top = [*self.tree.body, *(statement for function in around for statement in function.body)]
        defined = {name: statement for statement in reversed(top) for name in _defines(statement)}
        while wanted:
            name = wanted.pop()
            statement = self.function(name) if name in names else defined.get(name)
            if statement is None or id(statement) in statements:
                continue
            statements[id(statement)] = statement
            wanted += [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
        ordered = sorted(statements.values(), key=lambda one: one.lineno)
        imports = [one for one in ordered if isinstance(one, ast.Import | ast.ImportFrom)]
        others = [one for one in ordered if one not in imports]
        text = "\n".join(map(ast.unparse, imports)) + "\n" if imports else ""
        for before, one in zip([None, *others], others, strict=False):
            is_code = isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            after_code = isinstance(before, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            text += ("\n\n" if is_code or after_code else "\n" if before is None else "") + ast.unparse(one) + "\n"
        return text.lstrip("\n")


def called(node: ast.Call) -> str:
    """The last word of what is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _computed(left: Any, op: ast.operator, right: Any, node: ast.expr) -> Any:
    numbers = all(isinstance(one, int | float) for one in (left, right))
    texts = isinstance(left, str) and isinstance(right, str)
    if isinstance(op, ast.Add) and (numbers or texts):
        return left + right
    if numbers and isinstance(op, ast.Mult):
        return left * right
    if numbers and right and isinstance(op, ast.FloorDiv):
        return left // right
    return Unresolved(ast.unparse(node))


def _defines(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in names)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets, value=value) if _is_plain(value):
            yield from (one.id for one in targets if isinstance(one, ast.Name))
        case _:
            return


def _is_plain(value: ast.expr) -> bool:
    """Whether an assignment loads, trains and builds nothing: literals, and patterns."""
    return all(
        called(node) in ("compile", "frozenset", "set", "dict", "tuple")
        for node in ast.walk(value)
        if isinstance(node, ast.Call)
    )
