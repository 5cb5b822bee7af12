"""Commands that give one a recipe to begin with: new, import, recipes, completion."""

from __future__ import annotations

import argparse

from asyncrl.cli.common import say


def new(arguments: argparse.Namespace) -> int:
    from asyncrl.drafts.new import Wish, new

    a = arguments
    say(*new(Wish(a.name, a.data, a.reward, a.env, a.model, a.overrides)))
    return 0


def convert(arguments: argparse.Namespace) -> int:
    from asyncrl.drafts.importing import convert

    a = arguments
    say(*convert(a.system, a.file, a.out, a.processes, a.overrides))
    return 0


def recipes(arguments: argparse.Namespace) -> int:
    from asyncrl.recipe import catalogue

    if arguments.action == "copy":
        print(*catalogue.copy(arguments.name, arguments.folder), sep="\n")
        return 0
    listed = list(catalogue.entries())
    widths = [max(len(getattr(entry, field)) for entry in listed) for field in ("name", "needs")]
    for entry in listed:
        print(f"{entry.name:<{widths[0]}}  {entry.needs:<{widths[1]}}  {entry.what}")
    print("\nasyncrl recipes copy NAME [DIR] makes one yours")
    return 0


def completion(arguments: argparse.Namespace) -> int:
    from asyncrl.cli.completion import script

    print(script(arguments.shell), end="")
    return 0
