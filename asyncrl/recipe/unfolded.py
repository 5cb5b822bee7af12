"""YAML of anyone, measured before it is read: a few lines can unfold to more than memory holds."""

from __future__ import annotations

from typing import Any

import yaml

from asyncrl.errors import UserError

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_NODES, _MOST_DEPTH, _MOST_DIGITS = 50_000, 50, 100
_CHARS_OF_A_NODE = 100


def require_modest(text: str, where: str) -> None:
    """Raises UserError for what is deeper nested, or unfolds to more, than a recipe; yaml.YAMLError for no YAML."""
    count, sizes, begun = 0, {}, []
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            sizes[anchor] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = 1 + len(event.value) // _CHARS_OF_A_NODE
            count += sizes[event.anchor]
            if "\0" in event.value:
                raise UserError(f"{where}: a text has a null character, which no name or path may have; leave it out")
            if event.implicit[0] and len(event.value) > _MOST_DIGITS and event.value.lstrip("+-.")[:1].isdigit():
                raise UserError(f"{where}: a number has {len(event.value)} characters; see what the file is")
        elif isinstance(event, yaml.AliasEvent):
            # One that is not complete yet contains itself.
            count += sizes.get(event.anchor, _MOST_NODES + 1)
        if count > _MOST_NODES or len(begun) > _MOST_DEPTH:
            raise UserError(f"{where} is nested deeper, or unfolds to more, than a recipe; see what the file is")


def yaml_object(text: str, where: str) -> dict[str, Any]:
    """{} for what is no mapping, or no YAML. Raises UserError as `require_modest`."""
    try:
        require_modest(text, where)
        found = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
