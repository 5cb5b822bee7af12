"""Scoring functions of others evaluate what a model wrote, by Python's `eval`, or SymPy's `parse_expr`, which calls it.
In here that computes formulas and reads literals, and executes nothing else.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_FUNCTIONS = (
    *("Symbol", "Function", "Integer", "Float", "Rational", "Abs", "abs", "factorial", "gamma", "erf"),
    *("sqrt", "cbrt", "exp", "log", "ln", "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot"),
    *("sinh", "cosh", "tanh", "coth", "asinh", "acosh", "atanh"),
)
"""Of SymPy; what SymPy itself makes of a formula's names and numbers is among them."""
_CONSTANTS = ("pi", "E", "I", "oo", "True", "False", "None")
_PARTS = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.keyword),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_MOST_CHARS = 10_000


class Refused(ValueError):
    """Code that is neither a formula nor a literal."""


@contextmanager
def formulas_only() -> Iterator[None]:
    """Within it `eval` raises Refused for all else, in all of this process."""
    whole = builtins.eval

    def checked(source: Any, names: Any = None, more: Any = None, /, **named: Any) -> Any:
        names, more = named.get("globals", names), named.get("locals", more)
        _check(source, {**(more or {})})
        return whole(source, {"__builtins__": {}} if names is None else names, more)

    builtins.eval = checked
    try:
        yield
    finally:
        builtins.eval = whole


def _check(source: Any, known: Mapping[str, Any]) -> None:
    if not isinstance(source, str) or len(source) > _MOST_CHARS:
        raise Refused("no text, or a long one, is evaluated")
    try:
        parts = [*ast.walk(ast.parse(source.strip(), mode="eval"))]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refused(f"it is no formula: {error}") from error
    for part in parts:
        if not isinstance(part, _PARTS):
            raise Refused(f"it has {type(part).__name__}, which is not evaluated")
        if isinstance(part, ast.Name) and part.id not in (*_FUNCTIONS, *_CONSTANTS, *known):
            raise Refused(f"it names {part.id!r:.50}, which is not evaluated")
        # SymPy makes Function('f')(x) of a function that it does not know.
        called = part.func.func if isinstance(part, ast.Call) and isinstance(part.func, ast.Call) else None
        if isinstance(part, ast.Call) and not isinstance(called or part.func, ast.Name):
            raise Refused("it calls what has no name")
        if isinstance(called, ast.Name) and called.id != "Function":
            raise Refused("it calls what a call gives")
