"""Any folder as a package: `/home/me/mine.py` is the module `asyncrl.folders./home/me.mine`.

The name alone says where the file is, so that it is found in every process that can import asyncrl: what a reward
pickles to a pool of its own, spawned or forked from a server, is unpickled there. Two files of one name do not clash,
and `from .beside import name` works with and without an `__init__.py`. Only the standard library is imported here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

__path__: list[str] = []
"""Makes this module a package, of which `_Folders` finds the members."""


def module_name(path: Path) -> str:
    """Of a Python file, absolute; the packages that it is in are part of it."""
    top = top_folder(path)
    return ".".join([__name__, *map(_quoted, (str(top), *path.with_suffix("").relative_to(top).parts))])


def top_folder(path: Path) -> Path:
    """The first folder above the file that is no package."""
    return next(folder for folder in path.parents if not (folder / "__init__.py").is_file())


class _Folders(MetaPathFinder):
    """Finds the folder, which has no code, and files whose name has a dot; else Python's own finder does."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return None
        *above, last = map(_unquoted, fullname.removeprefix(f"{__name__}.").split("."))
        if not above and os.path.isabs(last) and Path(last).is_dir():
            found = ModuleSpec(fullname, None, is_package=True)
            found.submodule_search_locations = [last]
            return found
        file = Path(*above, f"{last}.py")
        return importlib.util.spec_from_file_location(fullname, file) if "." in last and file.is_file() else None


def _quoted(part: str) -> str:
    return part.replace("%", "%25").replace(".", "%2E")


def _unquoted(part: str) -> str:
    return part.replace("%2E", ".").replace("%25", "%")


sys.meta_path.append(_Folders())
