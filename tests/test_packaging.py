"""The wheel: what is in it, and that it works from an empty folder, without vLLM."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_VLLM = """
import sys
sys.modules["vllm"] = None
sys.path.insert(0, sys.argv[1])
import asyncrl
assert asyncrl.__file__.startswith(sys.argv[1]), asyncrl.__file__
from asyncrl.cli import main
assert main(["recipes", "copy", "tiny"]) == 0
assert main(["train", "tiny.yaml", "--dry-run"]) == 0
assert not {"torch", "ray", "vllm.engine"} & set(sys.modules)
import asyncrl.rewards.math, asyncrl.algorithms.losses, asyncrl.orchestrator.run, asyncrl.trainer.actor
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a clone of what git knows, or does not ignore: no build folder of an earlier time."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "asyncrl",
            "recipes",
            "*.toml",
            "*.md",
            "LICENSE",
        ],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=60,
    )
    source = folder / "source"
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    # A clone, whose files setuptools-scm asks git for.
    for arguments in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"],
    ):
        subprocess.run(["git", "-C", str(source), *arguments], check=True, timeout=60)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, timeout=240)
    return next(folder.glob("asyncrl-*.whl"))


def test_what_is_in_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "asyncrl/py.typed" in names
    assert "asyncrl/cluster/jobs.py" in names
    shipped = sorted(Path(name).name for name in names if name.startswith("asyncrl/recipe/shipped/"))
    assert shipped == sorted(path.name for path in (ROOT / "recipes").iterdir() if path.suffix in (".yaml", ".py"))
    assert not [name for name in names if name.startswith(("tests", "scripts", "recipes", "docs"))]
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "asyncrl = asyncrl.cli:main" in text
    assert "asyncrl = asyncrl.weights.plugin:register" in text


def test_it_works_from_an_empty_folder_without_vllm(wheel: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(tmp_path / "there"),
        str(wheel),
    ]
    subprocess.run(command, check=True, timeout=120)
    check = [sys.executable, "-c", WITHOUT_VLLM, str(tmp_path / "there")]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
