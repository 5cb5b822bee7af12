"""Parts of pages in docs/ that are made of tables and schemas: scripts/pages writes them, tests/docs compares."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from asyncrl.recipe import elsewhere
from asyncrl.recipe import keys as recipe_keys
from asyncrl.recipe.renamed import GONE, MOVED

DOCS = Path(__file__).resolve().parents[1] / "docs"


def made() -> dict[Path, str]:
    """Pages as they should be."""
    parts = {
        DOCS / "from_trl.md": ("names", "\n".join(names("trl", "TRL"))),
        DOCS / "from_verl.md": ("names", "\n".join(names("verl", "verl"))),
    }
    parts[DOCS / "reference.md"] = ("keys", "\n".join(keys()))
    return {page: between(page.read_text(), *part) for page, part in parts.items()}


def between(page: str, name: str, text: str) -> str:
    """The page with this text between the marks of that name."""
    marks = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
    assert re.search(marks, page, re.DOTALL), name
    return re.sub(marks, lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page, flags=re.DOTALL)


def names(system: str, title: str) -> Iterator[str]:
    """The table of names that have an equal, and what is said of the others."""
    rows = elsewhere.table(system)
    yield f"| {title} | recipe | remark |"
    yield "| --- | --- | --- |"
    for row in rows:
        if row.kind == "key":
            yield f"| {_all(_folded(row.names))} | {_all(row.keys)} | {row.remark} |"
    for kind, head in (("moot", "Not to be set here:"), ("none", "Without an equal:")):
        yield ""
        yield head
        yield ""
        for row in rows:
            if row.kind == kind:
                yield f"- {_all(_folded(row.names))}" + (f": {row.remark}" if row.remark else "")


def keys() -> Iterator[str]:
    """Every key in full, part by part, and those of earlier versions."""
    parts: dict[str, list[str]] = {}
    for key, field in recipe_keys.fields().items():
        what = " ".join((field.description or "").split()).replace("|", "\\|")
        row = f"| `{key}` | {recipe_keys.type_of(field)} | {_default(field)} | {what} |"
        parts.setdefault(key.rpartition(".")[0], []).append(row)
    for part, rows in parts.items():
        if part.count(".") and part.endswith((".reward", ".data")):
            continue  # as `reward` and `data`
        yield from (
            "",
            f"### {part or 'A recipe'}",
            "",
            "| key | what it may be | default | |",
            "| --- | --- | --- | --- |",
        )
        yield from rows
    yield from ("", "### Keys of earlier versions", "")
    yield "They work for one version more, and a line says their names today."
    yield from ("", "| before | now |", "| --- | --- |")
    yield from (f"| `{old}` | `{new}` |" for old, new in MOVED.items())
    yield from (f"| `{old}` | gone: only `{legal}` was taken |" for old, legal in GONE.items())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its keys'"
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("\n").removesuffix("\n...")
    return f"`{text}`"


def _all(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _folded(names: tuple[str, ...]) -> list[str]:
    """Names of one part with the part once: a.b.c, a.b.d as a.b.{c,d}."""
    parts: dict[str, list[str]] = {}
    for name in names:
        above, _, last = name.rpartition(".")
        parts.setdefault(above, []).append(last)
    found = []
    for above, last in parts.items():
        if not above:
            found += last
        else:
            found.append(f"{above}.{last[0]}" if len(last) == 1 else f"{above}.{{{','.join(last)}}}")
    return found


def main() -> None:
    for page, text in made().items():
        page.write_text(text)


if __name__ == "__main__":
    main()
