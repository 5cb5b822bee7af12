"""The path of a new user, as a script: scripts/new_user."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(960)
def test_the_path_of_a_new_user() -> None:
    pipe = subprocess.PIPE
    script = subprocess.Popen(
        [ROOT / "scripts/new_user"], stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = script.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        # It stops its Ray nodes itself.
        os.killpg(script.pid, signal.SIGTERM)
        pytest.fail(f"not through in 900 s: {script.communicate(timeout=30)[0]}")
    assert script.returncode == 0, output
    assert "Traceback" not in output
