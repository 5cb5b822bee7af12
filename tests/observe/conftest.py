"""The made-up run, for all tests of this room; and the helpers beside it, which importlib mode puts on no path."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def made_up() -> ModuleType:
    import made_up

    return made_up
