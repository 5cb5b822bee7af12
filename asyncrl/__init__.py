"""asyncrl: asynchronous RL post-training of language models on Ray."""

from __future__ import annotations

from typing import Any

_API = {
    "Recipe": "asyncrl.recipe.schema",
    "Run": "asyncrl.api.run",
    "Callback": "asyncrl.api.callbacks",
    **dict.fromkeys(("train", "resume", "evaluate"), "asyncrl.api.calls"),
}
"""Where each name is."""


def __getattr__(name: str) -> Any:
    """Looked up when it is asked for: `asyncrl --help` need not wait for it."""
    if name in _API:
        from importlib import import_module

        return getattr(import_module(_API[name]), name)
    if name != "__version__":
        raise AttributeError(f"module 'asyncrl' has no attribute '{name}'")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("asyncrl")
    except PackageNotFoundError:  # the files alone, as they travel with a submitted run
        return "0+unknown"
