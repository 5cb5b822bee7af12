"""Who imports whom: the table in docs/architecture.md is what there is, and no circle, of rooms or of files, exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Set
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "asyncrl"
ROW = re.compile(r"^\| `(\w+)/` \|[^|]*\|([^|]*)\|([^|]*)\|", re.MULTILINE)
HEAVY = {"ray", "torch", "transformers", "vllm"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports() -> Mapping[str, Set[str]]:
    """Modules of the package, and which others each imports, wherever it does."""
    paths = {module_of(path): path for path in PACKAGE.rglob("*.py")}

    def found(path: Path) -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    below = f"{node.module}.{alias.name}"
                    yield below if below in paths else node.module

    return {name: {other for other in found(path) if other in paths} - {name} for name, path in paths.items()}


def room_of(module: str) -> str | None:
    """None for the modules that belong to none: they are for all."""
    name = module.split(".")[1] if "." in module else ""
    return name if name and (PACKAGE / name).is_dir() else None


def table(column: int = 2) -> dict[str, set[str]]:
    """Which rooms each is said to import, or of which libraries it is not free (1); in the order of the page."""
    rows = ROW.findall((ROOT / "docs/architecture.md").read_text())
    return {row[0]: set(re.findall(r"\w+", row[column])) for row in rows}


def test_the_table_of_rooms_is_what_there_is() -> None:
    said = table()
    there: dict[str, set[str]] = {path.name: set() for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    for module, others in imports().items():
        if room := room_of(module):
            there[room] |= {other for o in others if (other := room_of(o)) and other != room}
    assert said == there


def test_rooms_are_free_of_libraries_that_take_seconds_to_load() -> None:
    """But for those that they are about."""
    there: dict[str, set[str]] = {room: set() for room in table()}
    for path in PACKAGE.rglob("*.py"):
        if room := room_of(module_of(path)):
            there[room] |= set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.MULTILINE)) & HEAVY
    assert table(1) == there


def test_no_room_and_no_file_imports_upward() -> None:
    rooms = table()
    for graph in (rooms, imports()):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            pytest.fail(" -> ".join(error.args[1]))


def test_the_rooms_stand_in_the_order_of_their_imports() -> None:
    seen: set[str] = set()
    for room, arrows in table().items():
        assert arrows <= seen, room
        seen.add(room)


def test_modules_of_no_room_need_little() -> None:
    for module, others in imports().items():
        if module.count(".") == 1 and room_of(module) is None and module != "asyncrl.__main__":
            assert {room_of(other) for other in others} <= {None, "storage"}, module


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_of)
def test_a_file_has_400_lines_at_most(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
