"""asyncrl: asynchronous RL post-training of language models on Ray."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    """`__version__`, looked up when it is asked for: `asyncrl --help` need not wait for it."""
    if name != "__version__":
        raise AttributeError(f"module 'asyncrl' has no attribute '{name}'")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("asyncrl")
    except PackageNotFoundError:  # the files alone, as they travel with a submitted run
        return "0+unknown"
