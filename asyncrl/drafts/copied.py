"""Functions of a script as a file of their own, with all that they use of it."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

from asyncrl.drafts.scopes import bound
from asyncrl.drafts.script import Script, called

_CODE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_OF_MODULES = ("__name__", "__doc__")


def source(script: Script, names: list[str]) -> tuple[str, list[str]]:
    """The text: imports, constants, other functions. And names that it uses and that are not in it: what the script
    loads or builds is not copied."""
    wanted, statements = [*names], {}
    functions = [n for n in ast.walk(script.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    around = [f for f in functions if any(getattr(statement, "name", None) in names for statement in f.body)]
    top = [*script.tree.body, *(statement for function in around for statement in function.body)]
    defined: dict[str, list[ast.stmt]] = {}
    built: set[str] = set()
    for statement in top:
        made = list(_defines(statement))
        for name in made:
            defined.setdefault(name, []).append(statement)
        if not made and not isinstance(statement, _CODE):
            built |= {name for node in ast.walk(statement) for name, _, _ in bound(node)}
    used = set()
    while wanted:
        name = wanted.pop()
        own = script.function(name) if name in names else None
        for statement in [own] if own else defined.get(name, []):
            used.add(name)
            if id(statement) not in statements:
                statements[id(statement)] = statement
                wanted += [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
    ordered = sorted(statements.values(), key=lambda one: one.lineno)
    return _text(ordered), sorted(_undefined(ordered) | (used & built))


def _text(ordered: list[ast.stmt]) -> str:
    imports = [one for one in ordered if isinstance(one, ast.Import | ast.ImportFrom)]
    others = [one for one in ordered if one not in imports]
    text = "\n".join(map(ast.unparse, imports)) + "\n" if imports else ""
    for before, one in zip([None, *others], others, strict=False):
        around = isinstance(one, _CODE) or isinstance(before, _CODE)
        text += ("\n\n" if around else "\n" if before is None else "") + ast.unparse(one) + "\n"
    return text.lstrip("\n")


def _undefined(statements: list[ast.stmt]) -> set[str]:
    """Names that are read, and bound nowhere in these statements."""
    read, bound = set[str](), {*dir(builtins), *_OF_MODULES}
    for node in (node for statement in statements for node in ast.walk(statement)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                bound |= {(alias.asname or alias.name).partition(".")[0] for alias in names}
    return read - bound


def _defines(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in names)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(value=value) | ast.AugAssign(value=value) | ast.AnnAssign(value=ast.expr() as value):
            yield from (name for name, _, _ in bound(statement) if _is_plain(value))
        case ast.Expr(value=ast.Call(args=arguments)) if all(map(_is_plain, arguments)):
            yield from (name for name, _, _ in bound(statement))
        case ast.If() | ast.Try() if all(_is_light(one) for one in _inside(statement)):
            yield from (name for one in _inside(statement) for name in _defines(one))


def _inside(statement: ast.If | ast.Try) -> list[ast.stmt]:
    """The statements of all arms."""
    arms = [statement.body, statement.orelse]
    if isinstance(statement, ast.Try):
        arms += [statement.finalbody, *(handler.body for handler in statement.handlers)]
    return [one for arm in arms for one in arm]


def _is_light(statement: ast.stmt) -> bool:
    """Whether it only imports and defines."""
    return isinstance(statement, ast.Pass) or any(True for _ in _defines(statement))


def _is_plain(value: ast.expr) -> bool:
    """Whether an assignment loads, trains and builds nothing: literals, and patterns."""
    return all(
        called(node) in ("compile", "frozenset", "set", "dict", "tuple")
        for node in ast.walk(value)
        if isinstance(node, ast.Call)
    )
