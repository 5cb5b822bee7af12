"""Lets the tests of this room share the chat templates of tests/envs: importlib mode puts no folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "envs"))
