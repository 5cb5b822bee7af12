"""Lets the tests of this room use the helpers of whole runs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "orchestrator"))
