"""Lets the tests of this room share their helpers and the trainer's: importlib mode puts no folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "trainer")]
