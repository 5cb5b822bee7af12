"""From words to a command and its arguments, or a sentence about the word that is none."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import asyncrl
from asyncrl.cli.options import add_all
from asyncrl.errors import UserError, nearest

GROUPS = {
    "Begin": ("new", "import", "recipes", "doctor"),
    "Train": ("train", "sft", "resume", "sweep"),
    "Foresee": ("data", "plan"),
    "Look": ("watch", "report", "compare", "inspect", "replay"),
    "Use": ("eval", "export"),
    "Cluster": ("submit", "attach", "stop"),
    "Shell": ("completion",),
}
"""Commands by what one wants to do."""
_MEANT = {
    **dict.fromkeys(("run", "start", "launch", "fit", "grpo", "rl"), "train"),
    **dict.fromkeys(("init", "create", "quickstart"), "new"),
    **dict.fromkeys(("list", "examples", "copy"), "recipes"),
    **dict.fromkeys(("convert", "migrate", "from"), "import"),
    **dict.fromkeys(("continue", "restart", "recover"), "resume"),
    **dict.fromkeys(("dashboard", "serve", "ui"), "watch"),
    **dict.fromkeys(("merge", "save"), "export"),
    **dict.fromkeys(("check", "validate"), "train RECIPE --dry-run"),
    **dict.fromkeys(("env", "info"), "doctor"),
}
"""Words of other tools for what a command does."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Raises UserError for what it does not know. Prints the version or the help if that is all that is asked."""
    of_all = parser()
    words, passed_on = _apart(sys.argv[1:] if argv is None else argv)
    arguments, rest = of_all.parse_known_args(words)
    if passed_on:
        arguments.passed_on = passed_on
    # argparse takes positionals in one go, so it leaves over the overrides that follow an option.
    unknown = [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]
    if unknown:
        raise UserError(_unknown(of_all, arguments, rest, unknown[0]))
    if rest:
        arguments.overrides += rest
    if arguments.version:
        print(f"asyncrl {asyncrl.__version__}")
    elif arguments.command is None:
        of_all.print_help()
    return arguments


def _apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is for this program, and what an evaluation passes on to another, behind --."""
    end = words.index("--") if "eval" in words[:1] and "--" in words else len(words)
    return [*words[:end]], [*words[end + 1 :]]


def _unknown(parser: argparse.ArgumentParser, arguments: argparse.Namespace, rest: list[str], word: str) -> str:
    """The sentence for an argument that is none: the option that looks like it, or the key that it would be."""
    name, equals, value = word.lstrip("-").partition("=")
    command = commands_of(parser).get(str(arguments.command))
    options = [one for action in command._actions for one in action.option_strings] if command else []
    near = difflib.get_close_matches(word.partition("=")[0].replace("_", "-"), options, n=1, cutoff=0.75)
    key = name.replace("-", "_")
    if word.startswith("--") and key and not near and hasattr(arguments, "overrides"):
        from asyncrl.recipe.keys import every, meant

        if not equals:
            after = [*rest, *arguments.overrides]
            value = next((one for one in after if not one.startswith("-") and "=" not in one), "VALUE")
        said = "" if key in every() else meant(key)
        same = re.fullmatch(r"; did you mean (.*)\?", said)
        if not said or same:
            right = same[1] if same else key
            return f"unknown argument {word}; keys of a recipe are said without dashes: {right}={value}"
        if " has the keys " not in said:
            return f"unknown argument {word}{said}; keys are said without dashes, as in max_steps=20"
    return f"unknown argument {word}" + (f"; did you mean {near[0]}?" if near else f"; see {parser.prog} --help")


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """By name."""
    found = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(next(found).choices)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Of a command that is none: the one that may be meant, rather than all."""
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            meant = f"; did you mean {_MEANT[value]}?" if value in _MEANT else nearest(value, action.choices)
            raise UserError(f"{value} is not a command of {self.prog}{meant or f'; {self.prog} --help lists them'}")
        if action.dest == "system" and Path(value).suffix in (".py", ".sh", ".yaml", ".yml"):
            whose = "trl" if value.endswith(".py") else "verl"
            raise UserError(f"whose file {value} is comes first: asyncrl import {whose} {value}")
        super()._check_value(action, value)


class _Main(_Parser):
    """The one whose help is a screen: commands by what one wants to do."""

    def format_help(self) -> str:
        lines = ["usage: asyncrl COMMAND ...        `asyncrl COMMAND --help` says more", ""]
        about = {one.dest: one.help for action in self._actions for one in getattr(action, "_choices_actions", ())}
        for group, names in GROUPS.items():
            lines += [f"{'' if place else group:<9}{name:<11}{about[name]}" for place, name in enumerate(names)]
        return "\n".join(
            [*lines, "", "asyncrl --version; in its source: docs/quickstart.md, docs/reference.md (keys)", ""]
        )


def parser() -> argparse.ArgumentParser:
    parser = _Main(prog="asyncrl")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser, prog="asyncrl")
    add_all(commands)
    return parser
