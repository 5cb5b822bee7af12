"""What several commands do: printing, finding a run directory, importing what is slow."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from asyncrl.errors import UserError
from asyncrl.storage.atomic import model_of
from asyncrl.storage.run_dir import open_file
from asyncrl.terminal.escape import visible


def say(*lines: object) -> None:
    print(visible("\n".join(map(str, lines))))


def check_run_dir(run_dir: Path) -> None:
    if run_dir.is_file():
        what = "a recipe (a file)" if run_dir.suffix in (".yaml", ".yml") else "a file"
        raise UserError(f"{run_dir} is {what}, not a run directory; name the folder that `asyncrl train` made")
    try:
        open_file(run_dir, "recipe.yaml").close()
    except FileNotFoundError:
        fault = "has no recipe.yaml" if run_dir.exists() else "does not exist"
        if model := model_of(str(run_dir)):
            fault += f"; a new run from that checkpoint is `asyncrl train RECIPE model={model}`"
        raise UserError(f"{run_dir} is not a run directory: it {fault}") from None


def local(run_dir: str, whole: bool) -> Path:
    """The run directory, or the local copy of one at a URL; `whole`: with what it takes to go on from it."""
    from asyncrl.storage import mirror

    return mirror.fetch(run_dir, checkpoints=whole) if mirror.is_url(run_dir) else Path(run_dir)


def of_step(target: str) -> tuple[str, int | None]:
    """RUN_DIR@STEP, or RUN_DIR alone, whose name may have such an end itself."""
    name, at, step = target.rpartition("@")
    named = at and step.isdecimal() and not Path(target).exists()
    return (name, int(step)) if named else (target, None)


def soon(text: str) -> AbstractContextManager[Any]:
    """A sign of life on a terminal, at once; where nobody looks, nothing."""
    if not sys.stderr.isatty():
        return nullcontext()
    from asyncrl.terminal.progress import shown

    return shown(text)


def importing(for_a_run: bool = True) -> AbstractContextManager[Any]:
    """ray, torch and transformers: some seconds, more on a machine that has not read them yet. Said in a run's log, or
    beside what a command prints."""
    from asyncrl.terminal.console import RunConsole
    from asyncrl.terminal.progress import shown

    return shown("importing ray, torch and transformers", console=RunConsole() if for_a_run else None)
