"""What no recipe holds. One is stored in run directories, shown by `--dry-run` and in reports, and sent to trackers; it
may also be someone else's, that asks for what this user's environment has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from asyncrl.errors import UserError

_READABLE = re.compile(r"USER|LOGNAME|HOME|HOSTNAME|TMPDIR|SCRATCH|WORK|(SLURM|ASYNCRL)_\w+")
_NAMED = re.compile(
    r"(^|[_-])((api|access|private|secret)[_-]?key|secret|passwd|password|passphrase|jwt|credentials?|bearer|authorization"
    r"|token|(access|api|auth|bearer|hf|hub|refresh|session)[_-]?token)$",
    re.IGNORECASE,
)
"""Names of keys and variables. Some that only sound like it, such as eos_token, are told by their values."""
_LEAST_CHARS = 12
_SHAPED = re.compile(
    r"\bhf_\w{30,}|\bsk-[\w-]{20,}|\bgh[pousr]_\w{30,}|\bgithub_pat_\w{30,}|\bAKIA[0-9A-Z]{16}\b|\bxox[abp]-[\w-]{10,}"
    r"|\bAIza[\w-]{35}|\bglpat-[\w-]{20,}|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/\s:@]+:[^/\s@]+@"
)
"""Keys of hubs and clouds, web tokens, private keys, and URLs with a password."""
# Its name since 2.4, which warns of the other.
_register = getattr(OmegaConf, "register_resolver", None) or OmegaConf.register_new_resolver


def found(value: Any, key: str = "") -> str | None:
    """The first key, with dots, whose value looks like a secret; None if there is none."""
    if isinstance(value, dict | list):
        named = value.items() if isinstance(value, dict) else [("", item) for item in value]
        parts = (found(item, f"{key}.{name}".strip(".")) for name, item in named)
        return next(filter(None, parts), None)
    if not isinstance(value, str):
        return None
    # A path to a file of secrets is none, nor is a name or a special token.
    looks = len(value) >= _LEAST_CHARS and value.isascii() and not re.search(r"^[/.~<\[]|\s", value)
    return key if _SHAPED.search(value) or (looks and _NAMED.search(key.rpartition(".")[2])) else None


def masked(text: str) -> str:
    """The text of a recipe that is stored already, as it may be shown."""
    lines = [_SHAPED.sub("…", line) for line in text.splitlines(keepends=True)]
    return "".join(_masked(line) for line in lines)


def _masked(line: str) -> str:
    key, colon, value = line.partition(": ")
    return f"{key}: …\n" if colon and found(value.strip().strip("'\""), key.strip(" -'\"")) else line


@contextmanager
def kept_from_recipes() -> Iterator[None]:
    """In here `${oc.env:NAME}` reads only what is no secret."""
    _register("oc.env", _environment, replace=True)
    try:
        yield
    finally:
        _register("oc.env", oc.env, replace=True)


def _environment(name: str, *default: str | None) -> str | None:
    if not _READABLE.fullmatch(name) or _NAMED.search(name):
        raise UserError(
            f"${{oc.env:{name}}} is not read, as a recipe is stored, shown and tracked: only USER, HOME, HOSTNAME, "
            "TMPDIR, SCRATCH, WORK and names that begin with SLURM_ or ASYNCRL_ are; say it on the command line, "
            f'key="${name}", if it is no secret'
        )
    value: str | None = oc.env(name, *default)
    return value
