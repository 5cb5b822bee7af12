"""Whose line it is that holds a loop."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from asyncrl.envs.watchdog import _line

CODE = """import sys
imported = sys._getframe()
def rollout():
    return sys._getframe()
"""


def test_an_import_is_no_line_of_an_episode(tmp_path: Path) -> None:
    path = tmp_path / "env.py"
    path.write_text(CODE)
    spec = importlib.util.spec_from_file_location("env_of_this_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert _line(module.imported) == ""
    assert _line(module.rollout()) == f"{path}:4"
