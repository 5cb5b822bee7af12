"""Ray's token of this user, where Ray looks for it too: whether it is known, and that no one else reads it."""

from __future__ import annotations

import os
from pathlib import Path

from asyncrl.errors import UserError

TOKEN_FILE = Path.home() / ".ray" / "auth_token"
_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def has_token() -> bool:
    return _in_environment() or TOKEN_FILE.exists()


def keep_private() -> None:
    """Ray writes its token so that all users of the machine may read it. UserError where it could not be written."""
    if _in_environment():
        return
    try:
        TOKEN_FILE.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if TOKEN_FILE.exists() and TOKEN_FILE.stat().st_uid == os.geteuid():
            TOKEN_FILE.chmod(0o600)
    except OSError as error:
        raise UserError(
            f"ray_address: Ray's token has no place in {TOKEN_FILE.parent}: {error.strerror}; set RAY_AUTH_TOKEN, or "
            "HOME to a folder of yours"
        ) from error


def _in_environment() -> bool:
    return any(os.environ.get(name) for name in _VARIABLES)
