"""Whether Ray's token for this user is known: Ray looks in the same places."""

from __future__ import annotations

import os
from pathlib import Path

TOKEN_FILE = Path.home() / ".ray" / "auth_token"
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def has_token() -> bool:
    return any(os.environ.get(name) for name in TOKEN_VARIABLES) or TOKEN_FILE.exists()
