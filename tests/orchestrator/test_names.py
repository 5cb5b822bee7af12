"""Names of run directories that nobody chose."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncrl.errors import UserError
from asyncrl.orchestrator.run import make_run_dir


def test_two_runs_that_begin_in_one_second_have_a_folder_each(tmp_path: Path) -> None:
    wanted = tmp_path / "runs/tiny-20260101-120000"
    made = [make_run_dir(wanted, may_rename=True).name for _ in range(3)]
    assert made == ["tiny-20260101-120000", "tiny-20260101-120000-2", "tiny-20260101-120000-3"]
    with pytest.raises(UserError, match="cannot be made: File exists"):
        make_run_dir(wanted, may_rename=False)
    (tmp_path / "a_file").touch()
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        make_run_dir(tmp_path / "a_file/tiny", may_rename=True)
