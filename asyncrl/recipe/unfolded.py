"""YAML of anyone, measured before it is read: a few lines can unfold to more than memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.base import Container
from omegaconf.errors import InterpolationResolutionError

from asyncrl.errors import UserError

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_NODES, _MOST_DEPTH, _MOST_DIGITS = 50_000, 50, 100
_MOST_INTERPOLATIONS = 100
_CHARS_OF_A_NODE = 100
_NODES_OF_AN_INTERPOLATION = 20
"""It takes as long to work out."""
_UNFOLDS = "its interpolations unfold to more than a recipe; write out what it is"


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
            if (number := event.value.count("${")) > _MOST_INTERPOLATIONS:
                raise UserError(
                    f"{where}: a text has {number} interpolations, where {_MOST_INTERPOLATIONS} is the most"
                )
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


@contextmanager
def interpolations_bounded() -> Iterator[None]:
    """In here OmegaConf raises InterpolationResolutionError once all values that it has worked out come to more than a
    recipe: it does so anew wherever one is named."""
    resolve, left = Container.resolve_parse_tree, _MOST_NODES

    def bounded(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= _NODES_OF_AN_INTERPOLATION
        value = resolve(*args, **kwargs) if left >= 0 else None
        left -= _num_nodes(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
        if left < 0:
            raise InterpolationResolutionError(_UNFOLDS)
        return value

    Container.resolve_parse_tree = bounded  # type: ignore[method-assign]
    try:
        yield
    finally:
        Container.resolve_parse_tree = resolve  # type: ignore[method-assign]


def require_modest_values(config: DictConfig) -> None:
    """Raises InterpolationResolutionError if it comes to more than a recipe, with all that its interpolations name."""
    sizes: dict[int, tuple[Any, int]] = {}

    def size(value: Any) -> int:
        if not isinstance(value, DictConfig | ListConfig):
            return _num_nodes(value)
        if id(value) not in sizes:
            # One that is not complete yet contains itself. The value is kept, so that no other gets its id.
            sizes[id(value)] = value, _MOST_NODES + 1
            keys = value.keys() if isinstance(value, DictConfig) else range(len(value))
            sizes[id(value)] = value, 1 + sum(size(value[key]) for key in keys if not OmegaConf.is_missing(value, key))
        return sizes[id(value)][1]

    for key in config:
        try:
            is_modest = OmegaConf.is_missing(config, key) or size(config[key]) <= _MOST_NODES
        except RecursionError:
            is_modest = False
        if not is_modest:
            error = InterpolationResolutionError(_UNFOLDS)
            error.full_key = str(key)
            raise error


def _num_nodes(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + sum(map(_num_nodes, value.values() if isinstance(value, dict) else value))
    return 1 + len(str(getattr(value, "_content", value))) // _CHARS_OF_A_NODE
