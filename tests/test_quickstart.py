"""scripts/quickstart says how to go on: here with stand-ins for what it installs and trains."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTHING = "#!/bin/sh\n"
TRAIN = """#!/bin/sh
for argument; do case "$argument" in run_dir=*) run_dir="${argument#run_dir=}" ;; esac; done
mkdir -p "$run_dir/checkpoints/step_000010/model" "$run_dir/checkpoints/step_000020/model"
"""


WAIT = f"""#!{sys.executable}
import signal, sys, time
def end(number, _):
    time.sleep(0.5)
    sys.exit(f"told {{number}}" if number == signal.SIGINT else print("told", number))
for number in (signal.SIGTERM, signal.SIGINT):
    assert signal.getsignal(number) != signal.SIG_IGN
    signal.signal(number, end)
print("waits", flush=True)
time.sleep(30)
"""


def install(tmp_path: Path, train: str) -> Path:
    for name, text in {"scripts/setup": NOTHING, ".venv/bin/python": NOTHING, ".venv/bin/asyncrl": train}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return Path(shutil.copy(ROOT / "scripts/quickstart", tmp_path / "scripts/quickstart"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_signals_reach_the_training_which_is_waited_for(tmp_path: Path, number: signal.Signals, code: int) -> None:
    def as_from_a_terminal() -> None:
        """Whoever started the tests in the background ignores SIGINT, and so would they."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    script, pipe = install(tmp_path, WAIT), subprocess.PIPE
    process = subprocess.Popen(script, stdout=pipe, stderr=subprocess.STDOUT, text=True, preexec_fn=as_from_a_terminal)
    assert process.stdout
    assert process.stdout.readline() == "waits\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert f"told {number.value}" in out
    assert (process.returncode, "The trained model" in out) == (code, code == 0)


@pytest.mark.parametrize("arguments", [["max_steps=20"], ["run_dir=runs/mine"]])
def test_its_last_lines_name_the_run_the_model_and_the_next_commands(tmp_path: Path, arguments: list[str]) -> None:
    install(tmp_path, TRAIN)
    done = subprocess.run([tmp_path / "scripts/quickstart", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (path.relative_to(tmp_path) for path in (tmp_path / "runs").iterdir())
    for words in (
        f"{run_dir}/checkpoints/step_000020/model ",
        f"{run_dir}/report.html",
        f"To go on, in {tmp_path}:",
        "source .venv/bin/activate",
        f"asyncrl watch {run_dir}",
    ):
        assert words in done.stdout
