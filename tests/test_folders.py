"""Files as modules that other processes find by their name."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from asyncrl.folders import module_name, top_folder
from asyncrl.plugins import load_object


def test_names_say_where_the_file_is(tmp_path: Path) -> None:
    assert module_name(Path("/home/me/mine.py")) == "asyncrl.folders./home/me.mine"
    assert module_name(Path("/v1.2/100%/my.own.py")) == "asyncrl.folders./v1%2E2/100%25.my%2Eown"
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert top_folder(package / "mine.py") == tmp_path
    assert module_name(package / "mine.py").endswith(".package.mine")


def test_another_process_unpickles_what_a_file_has(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Box:\n    value = 7\n\nbox = Box()\n")
    (tmp_path / "box").write_bytes(pickle.dumps(load_object("./mine.py:box", tmp_path, "reward")))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'box')!r}, 'rb')).value)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "7\n"


def test_what_is_not_there_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        __import__("asyncrl.folders./nowhere.mine")
