"""`asyncrl completion bash|zsh|fish`: a script that completes commands, options and keys. zsh takes bash's."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

from asyncrl.cli.arguments import commands_of, parser
from asyncrl.recipe.keys import every

_RECIPES, _RUNS = ("recipe",), ("run_dir", "run_dirs", "checkpoint", "model")

_BASH = """\
_asyncrl() {
  local word="${COMP_WORDS[COMP_CWORD]}" words="" files=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="%(commands)s"
  else
    case "${COMP_WORDS[1]}" in
%(cases)s
    esac
  fi
  case "$files:$COMP_CWORD:$word" in
    recipes:2:*) words="$(compgen -f -X '!*.y*ml' -- "$word") $(compgen -d -S / -- "$word")" ;;
    recipes:*:-* | *:-*) ;;
    recipes:*) words="$words $_asyncrl_keys" ;;
    runs:2:*) words="$(printf '%%s\\n' $(compgen -d -- "$word") $(compgen -d -- runs/) | sort -u)" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  case "${COMPREPLY[0]}" in *=|*/) compopt -o nospace 2> /dev/null ;; esac
}
_asyncrl_keys="%(keys)s"
complete -o bashdefault -o default -F _asyncrl asyncrl
"""


def script(shell: str) -> str:
    """For `bash`, `zsh` or `fish`."""
    commands = commands_of(parser())
    keys = [f"{key}=" for key in every()]
    if shell == "fish":
        return "\n".join(_fish(commands, keys)) + "\n"
    cases = "\n".join(
        f'      {name}) words="{" ".join(_options(of))}"; files="{_files(of)}" ;;' for name, of in commands.items()
    )
    text = _BASH % {"commands": " ".join(commands), "cases": cases, "keys": " ".join(keys)}
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text


def _options(command: argparse.ArgumentParser) -> list[str]:
    """Its options, and the choices of its positional arguments."""
    found = [option for action in command._actions for option in action.option_strings if option.startswith("--")]
    for action in command._actions:
        if not action.option_strings and action.choices:
            found += [str(choice) for choice in action.choices]
    return found


def _files(command: argparse.ArgumentParser) -> str:
    """What its first argument is: `recipes`, `runs`, or another."""
    first = next((action.dest for action in command._actions if not action.option_strings), "")
    return "recipes" if first in _RECIPES else "runs" if first in _RUNS else ""


def _fish(commands: dict[str, argparse.ArgumentParser], keys: list[str]) -> Iterator[str]:
    yield f"set -g __asyncrl_keys {' '.join(keys)}"
    for name, command in commands.items():
        here = f"__fish_seen_subcommand_from {name}"
        yield f"complete -c asyncrl -n __fish_use_subcommand -f -a {name}"
        for action in command._actions:
            for option in action.option_strings:
                if option.startswith("--"):
                    about = shlex.quote((action.help or "").replace("%%", "%"))
                    yield f"complete -c asyncrl -n '{here}' -l {option[2:]} -d {about}"
        if _files(command) == "recipes":
            yield f"complete -c asyncrl -n '{here}' -a '$__asyncrl_keys'"
