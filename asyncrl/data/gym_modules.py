"""One data set of reasoning_gym without the others: importing all takes a second, with matplotlib and sympy, and nearly
each is a module of its own, `reasoning_gym/KIND/NAME.py`.

Its packages are put into `sys.modules` with their bodies not run yet; they run when someone asks a package for a name
that is no module of it; `factory.DATASETS` has all of them then.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = "reasoning_gym"


class _Waiting(ModuleType):
    """A package whose body has not run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        if importlib.util.find_spec(f"{self.__name__}.{name}"):
            return importlib.import_module(f"{self.__name__}.{name}")
        _run_bodies()
        return getattr(self, name)


def data_sets(name: str) -> dict[str, Any]:
    """reasoning_gym's table of data sets, by name: with this one, or, if no module has its name, with all there are."""
    if _PACKAGE not in sys.modules:
        _import_alone(name)
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        _run_bodies()
        importlib.import_module(_PACKAGE)
    found: dict[str, Any] = DATASETS
    return found


def _import_alone(name: str) -> None:
    spec = importlib.util.find_spec(_PACKAGE)
    root = Path(spec.origin).parent if spec and spec.origin else None
    files = [file for file in root.glob("*/*.py") if file.stem == name] if root else []
    if spec and len(files) == 1:
        kind = f"{_PACKAGE}.{files[0].parent.name}"
        _wait(spec)
        if below := importlib.util.find_spec(kind):
            _wait(below)
            importlib.import_module(f"{kind}.{name}")


def _wait(spec: ModuleSpec) -> None:
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Waiting
    parent, _, last = spec.name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    sys.modules[spec.name] = module


def _run_bodies() -> None:
    waiting = [module for module in [*sys.modules.values()] if type(module) is _Waiting]
    for module in waiting:
        module.__class__ = ModuleType
    for module in reversed(waiting):  # the package itself last, which imports names of the others
        assert module.__spec__
        assert module.__spec__.loader
        module.__spec__.loader.exec_module(module)
