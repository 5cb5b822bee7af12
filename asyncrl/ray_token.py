"""Whether Ray's token for this user is known: Ray looks in the same places."""

from __future__ import annotations

import os
from pathlib import Path

_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def has_token() -> bool:
    return any(os.environ.get(name) for name in _VARIABLES) or (Path.home() / ".ray" / "auth_token").exists()
