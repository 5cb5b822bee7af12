"""One start for each run directory: the second is told who has it, and none is left by whoever has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncrl.cli import main, running
from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe
from asyncrl.storage.claim import claimed

TINY = Path(__file__).parents[2] / "recipes/tiny.yaml"
HOLDS = (
    "import sys\nfrom asyncrl.storage.claim import claimed\n"
    "with claimed(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()\n"
)


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds `run`, below the working directory, until its input ends."""
    monkeypatch.chdir(tmp_path)
    words = [sys.executable, "-c", HOLDS, "run"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        if process.poll() is None:
            process.kill()


def test_the_second_is_told_who_has_it(holder: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run", "../" + Path.cwd().name + "/run", str(Path("run").resolve())):
        said = f"process {holder.pid} works on {name} already; wait for it, or stop it with `kill {holder.pid}`"
        assert main(["train", str(TINY), f"run_dir={name}"]) == 2
        assert capsys.readouterr().err == f"asyncrl: {said}\n"
    with claimed("another"):
        pass
    assert not list(Path().iterdir()), "nothing is written"


def test_train_has_it_from_its_first_check_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(recipe: Recipe, *_: object) -> int:
        words = [sys.executable, "-c", HOLDS, str(recipe.run_dir)]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        assert f"UserError: process {os.getpid()} works on run already" in done.stderr
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "_begin", begin)
    assert main(["train", str(TINY), "run_dir=run"]) == 0
    with claimed("run"):
        pass


@pytest.mark.parametrize("killed", [True, False])
def test_it_is_free_however_its_holder_ends(holder: subprocess.Popen[bytes], killed: bool) -> None:
    with pytest.raises(UserError, match=f"process {holder.pid} works on run"), claimed("run"):
        pass
    if killed:
        holder.kill()
    else:
        holder.communicate()
    holder.wait()
    with claimed("run"):
        pass


def test_a_process_may_begin_again_what_it_has_itself(tmp_path: Path) -> None:
    with claimed(str(tmp_path)), claimed(str(tmp_path)):
        assert os.getpid()
