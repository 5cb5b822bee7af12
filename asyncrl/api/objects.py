"""Functions and classes given from Python, as the code that a recipe names: `package.module:name` or `file.py:name`.

What a notebook or a script defines has no module that another process could import, so it is pickled by value
(cloudpickle) into a file of its own: it travels with a submitted run, and a resume finds it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import keyword
import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from asyncrl.errors import UserError
from asyncrl.storage.run_dir import replace

FOLDER = Path("runs/objects")

_FILE = '''"""{name}, as it was given to asyncrl from Python: a pickle, not made to be edited."""

import base64

import cloudpickle

{name} = cloudpickle.loads(base64.b64decode("""
{pickle}
"""))
'''


def named(value: Any) -> Any:
    """Recipe keys in which functions and classes are given by name."""
    if isinstance(value, Mapping):
        return {key: named(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [named(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    return spec_of(value) if callable(value) else value


def spec_of(code: Any) -> str:
    """The name of a function, class or other callable. Raises UserError if it cannot be pickled."""
    module, name = getattr(code, "__module__", ""), getattr(code, "__qualname__", "")
    if module and module != "__main__" and _is_importable(module, name, code):
        return f"{module}:{name}"
    try:
        pickled = cloudpickle.dumps(code)
    except Exception as error:
        raise UserError(
            f"{name or code!r} cannot be sent to other processes: {type(error).__name__}: {error}; put it into a file, "
            "and name it as ./file.py:name"
        ) from error
    name = re.sub(r"\W", "_", name.rpartition(".")[2] or type(code).__name__).strip("_") or "function"
    name += "_" if keyword.iskeyword(name) else ""
    path = FOLDER / f"{name}_{hashlib.sha256(pickled).hexdigest()[:12]}.py"
    if not path.exists():
        FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = "\n".join(textwrap.wrap(base64.b64encode(pickled).decode(), 100))
        replace(path, _FILE.format(name=name, pickle=lines))
    return f"./{path}:{name}"


def _is_importable(module: str, name: str, code: Any) -> bool:
    try:
        return getattr(importlib.import_module(module), name, None) is code
    except ImportError:
        return False
