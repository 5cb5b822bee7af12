"""The path of a new user, as a script: scripts/new_user."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(660)
def test_the_path_of_a_new_user() -> None:
    done = subprocess.run([ROOT / "scripts/new_user"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
