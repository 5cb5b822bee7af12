"""A recipe as text: keys in the order they are given, with a comment beside those that have one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asyncrl.errors import UserError

_COLUMN = 34
_MOST_CHARS = 110


def put(keys: dict[str, Any], path: str, value: Any) -> None:
    """Sets the key at a path with dots."""
    *above, name = path.split(".")
    for step in above:
        keys = keys.setdefault(step, {})
    keys[name] = value


def overridden(keys: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """With `key=value` of the command line on top. Raises UserError for what is not of that form."""
    given = list(overrides)
    if odd := [one for one in given if not one.partition("=")[1] or one.startswith("=")]:
        raise UserError(f"'{odd[0]:.100}' is not of the form key=value, such as max_steps=20 or trainer.ranks=1")
    try:
        merged = OmegaConf.merge(OmegaConf.create(keys), OmegaConf.from_dotlist(given))
        return dict(OmegaConf.to_container(merged))  # type: ignore[arg-type]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{' '.join(given)}: no such value can be set: {str(error).splitlines()[0]}") from error


def text_of(keys: Mapping[str, Any], comments: Mapping[str, str], head: Iterable[str]) -> str:
    """YAML. `comments`: by key with dots; `head`: lines that stand above all."""
    lines = [f"# {printable(line)}".rstrip() for line in head]
    _block(keys, "", "", comments, lines)
    return "\n".join(lines) + "\n"


def _block(keys: Mapping[str, Any], prefix: str, indent: str, comments: Mapping[str, str], lines: list[str]) -> None:
    for name, value in keys.items():
        key, name = f"{prefix}{name}", _flow(name)
        flow = _flow(value)
        deep = isinstance(value, Mapping) and value
        inside = deep and any(comment.startswith(f"{key}.") for comment in comments)
        if deep and (inside or len(indent + name + flow) > _COLUMN + 30 or not indent):
            lines.append(_with(f"{indent}{name}:", comments.get(key)))
            _block(value, f"{key}.", f"{indent}  ", comments, lines)
        elif isinstance(value, list) and (len(flow) > _MOST_CHARS - 20 or any(isinstance(one, dict) for one in value)):
            lines.append(_with(f"{indent}{name}:", comments.get(key)))
            lines += [f"{indent}  - {_flow(one)}" for one in value]
        else:
            lines.append(_with(f"{indent}{name}: {flow}", comments.get(key)))


def _with(line: str, comment: str | None) -> str:
    return f"{line:<{_COLUMN - 1}} # {printable(comment)}" if comment else line


def _flow(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-2 and float(f"{value:.1e}") == value else repr(value)
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True)
    text = text.removesuffix("\n").removesuffix("\n...").strip()
    return text if text.isprintable() else json.dumps(value, default=str)


def printable(text: str) -> str:
    """On one line: what ends one, or does not show, is escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def write_new(files: Mapping[Path, str]) -> None:
    """Writes files that are not there. Raises UserError, and then none is there."""
    written: list[Path] = []
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x") as file:
                written.append(path)
                file.write(text)
    except FileExistsError:
        remove(written)
        raise UserError(f"{path} exists, and is not written over; take another name, or move it away") from None
    except OSError as error:
        remove(written)
        raise UserError(f"{path} cannot be written: {error.strerror}; name another place") from error


def remove(paths: Iterable[Path]) -> None:
    """Of files that were just written."""
    for path in paths:
        path.unlink(missing_ok=True)
