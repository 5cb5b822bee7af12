from __future__ import annotations

import os
import subprocess
import sys

import pytest

from asyncrl.terminal.console import Console, RunConsole

PRINT = """
import sys
from asyncrl.terminal import console
made = getattr(console, sys.argv[1])()
try:
    for number in range(3):
        made.print(number)
except BrokenPipeError:
    sys.exit(3)
"""


@pytest.mark.parametrize(("kind", "code"), [(Console, 3), (RunConsole, 0)])
def test_a_run_goes_on_without_a_reader_and_a_command_may_end(kind: type, code: int) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-c", PRINT, kind.__name__]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writes)
    assert done.returncode == code, done.stderr
