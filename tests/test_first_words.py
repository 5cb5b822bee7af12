"""What a newcomer meets first: the help is a screen, TAB completes, and all of it comes at once."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asyncrl.cli import main
from asyncrl.cli.arguments import GROUPS, commands_of, parser
from asyncrl.cli.commands import _COMMANDS, command

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "asyncrl")


def test_the_help_is_a_screen_with_every_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted(listed) == sorted(commands_of(parser())) == sorted(_COMMANDS)
    for name in listed:
        assert sum(line[9:].startswith(f"{name} ") for line in lines) == 1, name


def test_the_help_waits_for_no_command() -> None:
    """A tenth of a second of a core; that of the commands and of what they need is three times that."""
    code = "import sys; from asyncrl.cli import main; main([]); sys.exit(str(set(sys.modules) & set(sys.argv[1:])))"
    needless = [
        "asyncrl.cli.common",
        "asyncrl.cli.running",
        "asyncrl.storage",
        "asyncrl.observe",
        "rich",
        "yaml",
        "numpy",
    ]
    found = subprocess.run(
        [sys.executable, "-c", code, *needless], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.stderr.strip() == "set()"
    for name in _COMMANDS:
        assert callable(command(name)), name


def completed(folder: Path, *words: str) -> list[str]:
    """What TAB offers behind these words, in bash."""
    script = 'eval "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _asyncrl; printf "%s\\n" "${COMPREPLY[@]}"'
    given = subprocess.run([*COMMAND, "completion", "bash"], capture_output=True, text=True, check=True, timeout=60)
    done = subprocess.run(
        ["bash", "-c", script, "bash", given.stdout, "asyncrl", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_tab_completes_commands_options_files_and_keys(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "runs/first").mkdir(parents=True)
    assert completed(tmp_path, "re") == ["recipes", "resume", "report", "replay"]
    assert completed(tmp_path, "train", "m") == ["mine.yaml"]
    assert completed(tmp_path, "train", "mine.yaml", "--dr") == ["--dry-run"]
    assert completed(tmp_path, "train", "mine.yaml", "trainer.le") == ["trainer.learning_rate="]
    assert "rollout.engine=" in completed(tmp_path, "train", "mine.yaml", "rollout.e")
    assert completed(tmp_path, "watch", "runs/") == ["runs/first"]
    assert completed(tmp_path, "import", "t") == ["trl"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_of_that_shell(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(name in text for names in GROUPS.values() for name in names)
    if shell == "fish":
        assert text.count("complete -c asyncrl") > 40
    if not shutil.which(shell):
        return
    (tmp_path / "script").write_text(text)
    assert subprocess.run([shell, "-n", tmp_path / "script"], timeout=60, check=False).returncode == 0


@pytest.mark.timeout(120)
def test_a_run_has_its_first_words_on_the_terminal_before_it_imports_what_is_slow(tmp_path: Path) -> None:
    """CPU seconds of a machine that others use too say more than the clock: the words come before torch and ray."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    ours, theirs = pty.openpty()
    began = time.monotonic()
    process = subprocess.Popen(
        [*COMMAND, "train", "recipes/tiny.yaml", "run_dir=runs/none"],
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        cwd=tmp_path,
        start_new_session=True,
    )
    try:
        os.close(theirs)
        assert os.read(ours, 1)
        took = time.monotonic() - began
        loaded = Path(f"/proc/{process.pid}/maps").read_text()
    finally:
        process.kill()
        process.wait(timeout=30)
        os.close(ours)
    assert "libtorch" not in loaded
    assert took < 20
