"""docs/troubleshooting.md has every sentence that asyncrl says when something is wrong, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
ERRORS = {
    "UserError",
    "RunFailed",
    "DeadlineExceeded",
    "BudgetSpent",
    "JournalWriteError",
    "ClusterDied",
    "WeightMismatch",
}
GENERATED = {
    ROOT / "asyncrl" / name
    for name in (
        *("recipe/check_algorithm.py", "recipe/check_answers.py", "recipe/check_teacher.py", "recipe/check_sft.py"),
        *("observe/health.py", "planner/split.py"),
    )
}
"""Files whose functions yield or return such sentences."""


def sentences() -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / "asyncrl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args:
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                said = node.args[0] if name in ERRORS | {"warning"} else None
            elif isinstance(node, ast.Yield | ast.Return) and path in GENERATED:
                said = node.value
            else:
                continue
            if said is not None and (sentence := template(said)):
                yield path, sentence


def template(node: ast.expr) -> str | None:
    """The text with … for what is filled in; None for what is no text, or hardly any of its own."""
    match node:
        case ast.Constant(value=str(text)):
            parts = [re.sub(r"%[sdg]", "…", text)]
        case ast.JoinedStr(values=values):
            parts = [str(value.value) if isinstance(value, ast.Constant) else "…" for value in values]
        case _:
            return None
    text = " ".join(re.sub("…+", "…", "".join(parts)).split())
    return text if len(re.findall(r"[a-z]{2,}", text)) > 2 else None


def test_the_page_has_them_all_and_no_other() -> None:
    said = {sentence for _, sentence in sentences()}
    shown = set(re.findall(r"^- (?:`` (.+) ``|`([^`]+)`)$", PAGE.read_text(), re.MULTILINE))
    listed = {double or single for double, single in shown}
    assert len(said) > 150
    assert said - listed == set(), "add these to docs/troubleshooting.md"
    assert listed - said == set(), "no longer said: take these out of docs/troubleshooting.md"
