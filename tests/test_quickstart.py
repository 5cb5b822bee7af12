"""scripts/quickstart says how to go on: here with stand-ins for what it installs and trains."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTHING = "#!/bin/sh\n"
TRAIN = """#!/bin/sh
for argument; do case "$argument" in run_dir=*) run_dir="${argument#run_dir=}" ;; esac; done
mkdir -p "$run_dir/checkpoints/step_000010/model" "$run_dir/checkpoints/step_000020/model"
"""


@pytest.mark.parametrize("arguments", [["max_steps=20"], ["run_dir=runs/mine"]])
def test_its_last_lines_name_the_run_the_model_and_the_next_commands(tmp_path: Path, arguments: list[str]) -> None:
    for name, text in {"scripts/setup": NOTHING, ".venv/bin/python": NOTHING, ".venv/bin/asyncrl": TRAIN}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    shutil.copy(ROOT / "scripts/quickstart", tmp_path / "scripts/quickstart")
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
