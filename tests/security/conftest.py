"""Run directories as a stranger may leave them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for room in ("report", "security"):
    sys.path.append(str(Path(__file__).parents[1] / room))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A whole one, as asyncrl would write it."""
    import stranger

    return stranger.write_run(tmp_path / "run")
