"""The recipes that come with asyncrl: `recipes/` in the repository, in the package too by way of the link `shipped`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asyncrl.errors import UserError, nearest
from asyncrl.recipe.load import SHIPPED


@dataclass(frozen=True)
class Entry:
    """A shipped recipe; what is said of it is in the comment at its head."""

    name: str
    needs: str
    """Such as `8 x H100`, or `CPU`."""
    what: str


def entries() -> Iterator[Entry]:
    for path in sorted(SHIPPED.glob("*.yaml")):
        head = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
        planned = re.search(r"Planned for (\d+ x \w+)", " ".join(head))
        what = re.split(r"\.(?= )", " ".join(head), maxsplit=1)[0]
        yield Entry(path.stem, planned[1] if planned else "CPU", what)


def copy(name: str, folder: Path) -> list[Path]:
    """Copy a recipe and the code and rows that it names; returns the copies. Raises UserError: nothing is replaced."""
    known = [entry.name for entry in entries()]
    name = name.removesuffix(".yaml")
    if name not in known:
        raise UserError(f"recipes: {name} is not one of {', '.join(known)}{nearest(name, known)}")
    text = (SHIPPED / f"{name}.yaml").read_text()
    files = [f"{name}.yaml", *sorted(set(re.findall(r"\./(\w+\.(?:py|jsonl))\b", text)))]
    for file in files:
        if (folder / file).exists():
            raise UserError(f"recipes: {folder / file} exists; move it away, or name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copyfile(SHIPPED / file, folder / file)) for file in files]
    except OSError as error:
        raise UserError(f"recipes: {folder} cannot be written: {error.strerror}; name another folder") from error
