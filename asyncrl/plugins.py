"""Objects that a recipe names by `package.module:name` or `./file.py:name`: rewards, losses, engines.

There is no registry: whatever Python can import can be named. Only the standard library is imported here.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from asyncrl.errors import ActorError, UserError
from asyncrl.folders import module_name, top_folder

_NOT_THE_USERS = (
    *(os.path.join(sysconfig.get_path(key), "") for key in ("stdlib", "platstdlib", "purelib", "platlib")),
    os.path.join(os.path.dirname(__file__), ""),
    "<",
)
_SUFFIXES = tuple(importlib.machinery.all_suffixes())
_INSTALLED = ("site-packages", "dist-packages")


def load_object(spec: str, base_dir: Path, what: str) -> Any:
    """The object that `spec` names; a relative file is looked up from `base_dir`.

    `what` (such as "reward") names its part in messages. Raises UserError when the spec has another form,
    the module does not import (with the real cause) or has no such attribute (with the nearest one).
    """
    where, _, name = spec.rpartition(":")
    if not name or not _is_place(where):
        raise UserError(f"{what} '{spec}' must have the form package.module:name or ./file.py:name")
    try:
        if where.endswith(".py"):
            module = _import_file((base_dir / where).resolve())
        else:
            module = importlib.import_module(where)
    # A script without a __main__ guard may well call sys.exit.
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} '{spec}' does not import: {one_line(error)}") from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"{what} '{spec}': {where} has no '{name}'{hint}")
    return getattr(module, name)


def _is_place(where: str) -> bool:
    """A file, or a module's name. What is no identifier could name a folder by its path (`folders.py`)."""
    return where.endswith(".py") or all(part.isidentifier() for part in where.split("."))


def places(spec: str) -> Iterator[Path]:
    """The folders, or files, from which what `spec` names is imported, and what it imports from beside itself; nothing
    is imported to find out. Python's own are left out: asyncrl comes from there too."""
    where = spec.rpartition(":")[0]
    if where.endswith(".py"):
        path = Path(where).resolve()
        yield from dict.fromkeys((Path(where), path.parent, top_folder(path)))
        return
    top = where.partition(".")[0]
    with contextlib.suppress(ImportError, ValueError):  # there is no such module, as importing it will say
        # Ray's workers look in the working directory first.
        for found in (importlib.util.find_spec(top), importlib.machinery.PathFinder.find_spec(top, [os.getcwd()])):
            if found is not None:
                origin = [found.origin] if found.has_location and found.origin else []
                for place in map(Path, found.submodule_search_locations or origin):
                    if not f"{place}{os.sep}".startswith(_NOT_THE_USERS):
                        yield place if place.parent.name in _INSTALLED else place.parent


def is_importable(entry: os.DirEntry[str]) -> bool:
    """Whether `import` may read it: a folder too, that of bytecode among them."""
    return entry.name.isidentifier() if entry.is_dir() else entry.name.endswith(_SUFFIXES)


def one_line(error: BaseException) -> str:
    """`Type: message (file.py:12)`; the place is the deepest frame outside asyncrl and installed libraries."""
    text = " ".join(shown(error).split())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_the_users(frame.filename)]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    kind = error.kind if isinstance(error, ActorError) else type(error).__name__
    return f"{kind}{': ' if text else ''}{text}{place}"


def is_the_users(file: str) -> bool:
    """Whether code lies outside of asyncrl, Python and installed libraries."""
    return not file.startswith(_NOT_THE_USERS)


def shown(value: object, how: Callable[[Any], str] = str) -> str:
    """`str` or `repr` of what is another's and may have none, as an int of 5000 digits."""
    try:
        return how(value)
    except Exception as error:
        return f"{type(value).__name__} without a text ({type(error).__name__})"


def encodable(text: str) -> str:
    """Half a pair of surrogates, which UTF-8 has no room for, becomes its escape."""
    return text.encode(errors="backslashreplace").decode()


def _import_file(path: Path) -> ModuleType:
    """Imports a file once per process, however often and for whatever part it is named."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    # Modules beside the file, or beside its package, can be imported from it; last, so that they shadow nothing that
    # is installed.
    for folder in (path.parent, top_folder(path)):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    # A file may be younger than what the import system remembers of its folder.
    importlib.invalidate_caches()
    return importlib.import_module(module_name(path))
