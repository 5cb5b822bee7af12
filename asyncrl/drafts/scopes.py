"""What the names of a script stand for where they are used: by scope, in the order of the source, branches told apart.

A name has a value if one assignment is sure to be the last before its use. It has none if one in a branch or a loop,
`+=`, a parameter, or a change in place (`x[...] = ...`, `x.append(...)`) may come in between.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SCOPES = (ast.Module, *_FUNCTIONS, *_COMPREHENSIONS, ast.ClassDef)
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_BRANCHES = (ast.If, ast.Try, ast.TryStar, ast.Match, ast.IfExp, *_LOOPS)
_CHANGES = {"append", "extend", "insert", "update", "setdefault", "pop", "remove", "clear", "sort", "reverse"}
Place = tuple[int, int]


@dataclass(frozen=True)
class Binding:
    """A statement that gives a name a value."""

    node: ast.AST
    value: ast.expr | None
    """None: what it is is only known when the script runs."""
    element: int | None
    """In `a, b = value`."""
    end: Place
    path: tuple[tuple[int, str], ...]
    """The branches around it: a statement, and its arm."""


class Scopes:
    """Of a script's syntax tree."""

    def __init__(self, tree: ast.Module) -> None:
        self._parents: dict[int, tuple[ast.AST, str]] = {}
        """By node: the one around it, and the field that it is in."""
        self._bindings: dict[tuple[int, str], list[Binding]] = {}
        self._kinds: dict[int, ast.AST] = {}
        self._shared: set[str] = set()
        """Names that a function changes outside of itself."""
        for node in ast.walk(tree):
            self._kinds[id(node)] = node
            self._shared |= set(node.names) if isinstance(node, ast.Global | ast.Nonlocal) else set()
            for name, value in ast.iter_fields(node):
                children = value if isinstance(value, list) else [value]
                self._parents |= {id(child): (node, name) for child in children if isinstance(child, ast.AST)}
        for node in ast.walk(tree):
            for name, value, element in bound(node):
                self._bind(node, name, value, element)

    def _bind(self, node: ast.AST, name: str, value: ast.expr | None, element: int | None) -> None:
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            node = node.target
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            node = node.optional_vars
        is_argument = isinstance(node, ast.arg)
        scope = self.scope(node)
        end = (0, 0) if is_argument else (node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
        path = () if is_argument else self.path(node)
        self._bindings.setdefault((id(scope), name), []).append(Binding(node, value, element, end, path))

    def _above(self, node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
        while (found := self._parents.get(id(node))) is not None:
            yield found
            node = found[0]

    def scope(self, node: ast.AST) -> ast.AST | None:
        """The function or module around it."""
        return next((one for one, _ in self._above(node) if isinstance(one, _SCOPES)), None)

    def path(self, node: ast.AST) -> tuple[tuple[int, str], ...]:
        """Branches around a node in its scope, outermost first."""
        found = []
        for one, arm in self._above(node):
            if isinstance(one, _SCOPES):
                break
            if isinstance(one, ast.ExceptHandler | ast.match_case):
                arm = f"{arm} {id(one)}"
                found.append((id(self._parents[id(one)][0]), arm))
            elif isinstance(one, _BRANCHES) and arm not in ("handlers", "cases") and not _is_main(one):
                found.append((id(one), arm))
        return tuple(reversed(found))

    def found(self, name: ast.Name) -> tuple[Binding | None, list[Binding]]:
        """The assignment that is sure to come before this use, and those that may have come after it."""
        scope = self.scope(name)
        if name.id in self._shared:
            return None, []
        if (scoped := self._bindings.get((id(scope), name.id))) is not None:
            return self._before(name, scoped)
        for outer, _ in self._above(scope) if scope is not None else ():
            if not isinstance(outer, ast.ClassDef) and (scoped := self._bindings.get((id(outer), name.id))) is not None:
                sure = [one for one in scoped if not one.path]
                return (scoped[0], []) if len(scoped) == len(sure) == 1 else (None, scoped)
        return None, []

    def _before(self, name: ast.Name, scoped: list[Binding]) -> tuple[Binding | None, list[Binding]]:
        at, path = (name.lineno, name.col_offset), self.path(name)
        loops = {one for one, _ in path if isinstance(self._kinds[one], _LOOPS)}
        around = [one for one, _ in self._above(name)]
        there = [
            one
            for one in scoped
            if not any(one.node is node for node in around)
            and (one.end <= at or loops & {branch for branch, _ in one.path})
            and not _exclude(one.path, path)
        ]
        there.sort(key=lambda one: one.end)
        sure: Binding | None = None
        doubtful: list[Binding] = []
        for one in there:
            if one.end <= at and one.value is not None and one.path == path[: len(one.path)]:
                sure, doubtful = one, []
            else:
                doubtful.append(one)
        return sure, doubtful

    def is_sure(self, node: ast.AST, use: ast.AST) -> bool:
        """Whether a statement is run whenever the use is."""
        path = self.path(node)
        return path == self.path(use)[: len(path)]


def _is_main(node: ast.AST) -> bool:
    """`if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and any(
        isinstance(one, ast.Name) and one.id == "__name__" for one in ast.walk(node.test)
    )


def _exclude(one: tuple[tuple[int, str], ...], other: tuple[tuple[int, str], ...]) -> bool:
    """Whether two paths are arms of the same `if`."""
    arms = dict(one)
    return any({arms.get(branch), arm} == {"body", "orelse"} for branch, arm in other)


def bound(node: ast.AST) -> Iterator[tuple[str, ast.expr | None, int | None]]:
    """Names that a statement gives a value, the value, and the place in it."""
    match node:
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                yield from _targets(target, value)
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            yield from _targets(target, value)
        case ast.NamedExpr(target=target, value=value):
            yield from _targets(target, value)
        case ast.AugAssign(target=target) | ast.For(target=target) | ast.AsyncFor(target=target):
            yield from _unknown(target)
        case ast.comprehension(target=target):
            yield from _unknown(target)
        case ast.withitem(optional_vars=ast.expr() as target):
            yield from _unknown(target)
        case ast.Delete(targets=targets):
            for target in targets:
                yield from _unknown(target)
        case ast.arg(arg=name):
            yield name, None, None
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name, None, None
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name, None, None
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (((alias.asname or alias.name).partition(".")[0], None, None) for alias in names)
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=what))) if what in _CHANGES:
            yield name, None, None


def _targets(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr | None, int | None]]:
    match target:
        case ast.Name(id=name):
            yield name, value, None
        case ast.Tuple(elts=items) | ast.List(elts=items):
            is_like = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(items)
            for place, item in enumerate(items):
                if is_like and isinstance(value, ast.Tuple | ast.List):
                    yield from _targets(item, value.elts[place])
                elif isinstance(item, ast.Name):
                    yield item.id, value, place
                else:
                    yield from _unknown(item)
        case _:
            yield from _unknown(target)


def _unknown(target: ast.expr) -> Iterator[tuple[str, ast.expr | None, int | None]]:
    """Of `x`, `x[...]` and tuples of them; an attribute is looked at where its object is."""
    match target:
        case ast.Name(id=name) | ast.Subscript(value=ast.Name(id=name)):
            yield name, None, None
        case ast.Tuple(elts=items) | ast.List(elts=items):
            for item in items:
                yield from _unknown(item)
        case ast.Starred(value=value):
            yield from _unknown(value)
