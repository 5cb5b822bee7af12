"""The command line."""

from asyncrl.cli.commands import main

__all__ = ["main"]
