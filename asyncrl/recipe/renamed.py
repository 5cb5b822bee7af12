"""Keys of earlier versions: they work for one version more, and a line says their names today."""

from __future__ import annotations

import logging
from typing import Any

from asyncrl.control.settings import FIXED_LAG
from asyncrl.errors import UserError

logger = logging.getLogger(__name__)

MOVED = {
    "over_age": "on_stale",
    **{
        f"budgets.{what}_in_a_row": f"budgets.max_consecutive_{what}"
        for what in ("failed_groups", "filtered_groups", "reward_failures", "restarts", "skipped_steps")
    },
    "selection_window": "experimental.selection_window",
    "backup_groups": "experimental.backup_groups",
    "weights.push_lag": "experimental.push_lag",
}
GONE = {"rollout.top_p": 1.0, "rollout.top_k": 0}
"""Keys that had one legal value."""


def today(keys: dict[str, Any], where: str, *, quietly: bool = False) -> dict[str, Any]:
    """A layer's keys with the names that they have now, in place. `quietly`: nobody wrote them by hand. Raises
    UserError."""
    moved = dict(MOVED)
    if keys.get("policy") in FIXED_LAG:
        moved["policy"] = "experimental.policy"
    elif "policy" in keys and _part(keys, "experimental.policy")[0] is None:
        _put(keys, "experimental.policy", None)  # that of a layer below is no more
    for old, new in moved.items():
        part, name = _part(keys, old)
        if part is not None:
            _put(keys, new, part.pop(name))
            if not quietly:
                logger.warning("%s: %s is called %s now, and its old name goes with the next version", where, old, new)
    for old, legal in GONE.items():
        part, name = _part(keys, old)
        if part is not None and part.pop(name) != legal:
            raise UserError(
                f"{where}: {old} cuts the sampled distribution, so that its log-probs are not those of the trainer; "
                "leave it out"
            )
    return keys


def _part(keys: dict[str, Any], path: str) -> tuple[dict[str, Any] | None, str]:
    """The mapping that has the last name of the path, and that name; None if there is none."""
    *above, name = path.split(".")
    part: Any = keys
    for step in above:
        part = part.get(step) if isinstance(part, dict) else None
    return (part, name) if isinstance(part, dict) and name in part else (None, name)


def _put(keys: dict[str, Any], path: str, value: Any) -> None:
    above, _, name = path.rpartition(".")
    part = keys.setdefault(above, {}) if above else keys
    if isinstance(part, dict):  # else it is refused for what it is
        part[name] = value
