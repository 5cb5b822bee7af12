"""What travels with a submitted run: the files of the current directory, the resolved recipe, and asyncrl itself.

In a git checkout these are the files that git does not ignore; elsewhere all but hidden and generated ones. Models and
data are not for shipping: they lie where every node sees them, and the recipe names them by absolute path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncrl
from asyncrl.errors import UserError
from asyncrl.models import TINY_LLAMA
from asyncrl.recipe.data import DataRecipe
from asyncrl.recipe.load import dump
from asyncrl.recipe.schema import Recipe
from asyncrl.task import MADE

RECIPE_FILE = "asyncrl_recipe.yaml"
MOST_BYTES = 100 * 2**20
_NOT_SHIPPED = {"__pycache__", "runs", "models", "wandb", "site", "node_modules"}
_GIT_DEADLINE_S = 60.0


def shippable(base_dir: Path) -> list[Path]:
    """Paths relative to `base_dir`. Raises UserError if they are more than `MOST_BYTES` together."""
    found = _of_git(base_dir)
    files = sorted(path for path in (_walk(base_dir) if found is None else found) if (base_dir / path).is_file())
    sizes = {path: (base_dir / path).stat().st_size for path in files}
    if (total := sum(sizes.values())) > MOST_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise UserError(
            f"submit: the files of {base_dir} have {total / 2**20:.0f} MB, and {MOST_BYTES / 2**20:.0f} MB can travel "
            f"with a run; the largest is {largest} ({sizes[largest] / 2**20:.0f} MB): name it in .gitignore, or submit "
            "from another directory"
        )
    return files


def _of_git(base_dir: Path) -> list[Path] | None:
    """None if this is no git checkout."""
    command = ["git", "-C", str(base_dir), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, timeout=_GIT_DEADLINE_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return [Path(os.fsdecode(name)) for name in listed.stdout.split(b"\0") if name] if not listed.returncode else None


def _walk(base_dir: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(base_dir):
        here = Path(folder)
        names[:] = [
            n for n in names if n not in _NOT_SHIPPED and n[0] != "." and not (here / n / "pyvenv.cfg").exists()
        ]
        yield from ((here / name).relative_to(base_dir) for name in files if name[0] != ".")


def check_reachable(recipe: Recipe, shipped: list[Path]) -> None:
    """UserError if the recipe names something by a relative path that does not travel."""
    there = {os.path.normpath(path) for path in shipped}
    there |= {os.path.normpath(folder) for path in shipped for folder in path.parents}
    for key, path in named(recipe):
        if not Path(path).is_absolute() and os.path.normpath(path) not in there:
            raise UserError(
                f"{key} {path} does not travel with the run: git ignores it, or it is not under the current directory; "
                "put it where every node sees it, and name its absolute path"
            )


def plain(name: str) -> str:
    """A recipe's name as a job may be called: nothing in it means anything to a shell, to Slurm or to Kubernetes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "run"


def check_run_dir(recipe: Recipe) -> None:
    """UserError for a run directory that would go away with the job."""
    run_dir = recipe.run_dir
    if run_dir is None or not (Path(run_dir).is_absolute() or "://" in run_dir):
        raise UserError(
            f"run_dir {run_dir or '(none)'}: a submitted run has a working directory of its own, which goes away with "
            "it; set run_dir=/a/path/that/every/node/sees/NAME, or run_dir=s3://BUCKET/NAME"
        )


def named(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Key and path of every local file or folder that the recipe names."""
    model = recipe.model
    if model != TINY_LLAMA and (model.startswith((".", "/", "models/")) or Path(model).exists()):
        yield "model", model
    for teacher in recipe.algorithm.teacher:
        if Path(teacher.vocabulary).exists():
            yield "algorithm.teacher", teacher.vocabulary
    of_data: list[tuple[str, DataRecipe]] = [("data.path", source) for source in recipe.sources]
    of_data += [(f"eval.{i}.data.path", part.data) for i, part in enumerate(recipe.eval)]
    of_data += [("algorithm.sft.data.path", sft.data)] if (sft := recipe.algorithm.sft) else []
    for key, data in of_data:
        yield from ((key, path) for path in data.paths if not path.startswith(MADE) and Path(path).exists())
        if data.success_rate is not None and data.success_rate.path is not None:
            yield key.removesuffix("path") + "success_rate.path", data.success_rate.path
    for key, spec in recipe.code.items():
        if (file := spec.rpartition(":")[0]).endswith(".py"):
            yield key, file


def stage(recipe: Recipe, base_dir: Path, shipped: list[Path], folder: Path) -> None:
    """Fill an empty folder with what travels: this asyncrl too, so that all nodes run the same."""
    package = Path(asyncrl.__file__).parent
    shutil.copytree(package, folder / "asyncrl", ignore=shutil.ignore_patterns("__pycache__"))
    for path in shipped:
        if path.parts[0] != "asyncrl":
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(base_dir / path, folder / path)
    (folder / RECIPE_FILE).write_text(dump(recipe))
