"""Lets the tests of this room share chats.py and scripted.py, and import the environments of recipes/: importlib mode
puts no folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "recipes"))
