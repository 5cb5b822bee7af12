"""Whether Ray's token for this user is known: Ray looks in the same places."""

from __future__ import annotations

import os
from pathlib import Path

TOKEN_FILE = Path.home() / ".ray" / "auth_token"
_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def has_token() -> bool:
    return any(os.environ.get(name) for name in _VARIABLES) or TOKEN_FILE.exists()
