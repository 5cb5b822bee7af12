"""From recipe files and `key=value` arguments to a validated recipe, and back to YAML.

    base recipe  <-  recipe  <-  key=value ...        merged by OmegaConf, later layers win; one that names other
                        |                             data begins without what described the data below it
                        |
                    pydantic                          the first fault becomes one sentence

Imports neither torch nor ray nor vllm.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from asyncrl.control import staleness
from asyncrl.control.settings import Settings
from asyncrl.errors import UserError, nearest
from asyncrl.recipe import secret
from asyncrl.recipe.algorithm import PRESETS, AlgorithmRecipe
from asyncrl.recipe.data import TABLE_FILES, TEXT_FILES
from asyncrl.recipe.keys import meant, whole
from asyncrl.recipe.part import LIST, ONE
from asyncrl.recipe.paths import beside
from asyncrl.recipe.renamed import today
from asyncrl.recipe.schema import UNKNOWN_STEPS, Recipe
from asyncrl.recipe.unfolded import interpolations_bounded, require_modest, require_modest_values
from asyncrl.storage.small_files import read

_MAX_SHOWN_CHARS = 60
_MOST_PARTS = 50
"""Of a key, with dots."""
_NO_KEYS = ("[key]", "str", "list[str]", ONE, LIST)
"""What pydantic puts into the place of a fault beside keys."""
_UNKNOWN = ("extra_forbidden", "invalid_key")
_EXPECTED = {
    "replicas": "a whole number, or a mapping of min and max",
    "gpus": "a share of one GPU, such as 0.5, or a whole number of GPUs",
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "text of letters, digits and _.-, without blanks",
    "too_short": "a list that is not empty",
    "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}

_RECIPE_FILES = (".yaml", ".yml")

SHIPPED = Path(__file__).with_name("shipped")
"""The recipes that come with asyncrl (`recipe/catalogue.py`)."""

_ONE_OR_LIST = ("data", "reward", "eval")
"""Keys that are one thing or a list of parts."""
_MAY_BE_PATHS = ("data", "env")
"""Keys whose path alone may stand for them."""
_OF_ONE_DATA_SET = ("options", "split", "prompt_column", "completion_column")
"""Keys of `data` that say nothing about any other path."""


@dataclass(frozen=True)
class Layer:
    """Some keys, and where they come from (shown in messages)."""

    where: str
    keys: DictConfig
    replaced: tuple[str, ...] = ()
    """Those whose mapping takes the place of the one below, where others are merged into it."""


def load(path: Path, overrides: Sequence[str] = (), text: str | None = None) -> Recipe:
    """The recipe of a file, its `base:` files below it and `key=value` overrides above it. `text`: what is in the file,
    if that has been read.

    Raises UserError: one sentence for the first fault, naming the file or argument it stands in.
    """
    path = Path(os.path.normpath(path))
    files, arguments = _file_layers(path, [], text), [*map(_override_layer, overrides)]
    with secret.kept_from_recipes(), interpolations_bounded():
        files, arguments = ([*map(_expand_preset, layers)] for layers in (files, arguments))
        layers = [*files, *arguments]
        # All arguments are one level: what describes the data may stand before data.path.
        merged = _merge([*([layer] for layer in files), arguments], layers)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # A misspelt key is missing under its right name too: name the misspelling.
        fault = next((f for f in faults if f["type"] in _UNKNOWN), faults[0])
        place = tuple(part for part in fault["loc"] if part not in _NO_KEYS)
        where = _origin(layers, place) if place else None
        raise UserError(f"{where or path}: {_sentence(fault, '.'.join(map(str, place)))}") from error


def dump(recipe: Recipe) -> str:
    """YAML of all keys in the order of the schema; `load` of it gives an equal recipe."""
    keys = recipe.model_dump()
    if recipe.max_steps == UNKNOWN_STEPS:
        keys["max_steps"] = None
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(keys)))


def control_settings(recipe: Recipe) -> Settings:
    """What the controller is told. Raises UserError if policy, staleness, window and on_stale do not go together."""
    try:
        return Settings(
            groups_per_step=recipe.groups_per_step,
            max_staleness=recipe.max_staleness,
            max_steps=recipe.max_steps,
            selection_window=recipe.experimental.selection_window,
            on_stale=recipe.on_stale,
            policy=recipe.experimental.policy or recipe.policy,
            push_lag=recipe.experimental.push_lag,
            backup_groups=recipe.experimental.backup_groups,
            groups_per_replica=recipe.experimental.groups_per_replica,
            tokens_per_group=recipe.group_size * recipe.rollout.max_new_tokens,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def worst_case_staleness(recipe: Recipe) -> int:
    """Largest age that a trained token can have, in updates (I1)."""
    return staleness.worst_case(control_settings(recipe))


def nearest_file(path: Path, suffixes: Sequence[str], base_dir: Path = Path()) -> str:
    """The same for the files with one of `suffixes` beside one that does not exist under `base_dir`."""
    folder = base_dir / path.parent
    files = [f for f in folder.iterdir() if f.is_file() and f.name.endswith(tuple(suffixes))] if folder.is_dir() else []
    # Of two files with one stem, the one with the same suffix wins.
    by_stem = {f.stem: f.name for f in sorted(files, key=lambda f: (f.suffix == path.suffix, f.name))}
    near = difflib.get_close_matches(path.stem, by_stem, n=1)
    return f"; did you mean {path.parent / by_stem[near[0]]}?" if near else ""


def _shipped(path: Path) -> str:
    """How to get a recipe that comes with asyncrl, and is not here."""
    there = path.with_suffix(".yaml")
    if path.suffix not in ("", ".yaml") or there.exists() or not (SHIPPED / there.name).is_file():
        return ""
    folder = "" if path.parent == Path() else f" {shlex.quote(str(path.parent))}"
    return f"; `asyncrl recipes copy {path.stem}{folder}` makes {there}"


# -- layers


def _file_layers(path: Path, above: list[Path], given: str | None = None) -> list[Layer]:
    """The file and those it is based on, lowest first; `above` are the files that led here."""
    chain = [*above, path]
    said_by = f"{above[-1]}: base " if above else ""
    if os.path.realpath(path) in map(os.path.realpath, above):
        raise UserError(f"{above[-1]}: base goes in a circle, {' -> '.join(map(str, chain))}; remove one of them")
    if given is None and path.is_file():
        _require_recipe(path, said_by)
    try:
        text = read(path).decode() if given is None else given
    except FileNotFoundError:
        near = _shipped(path) or nearest_file(path, _RECIPE_FILES)
        raise UserError(f"{said_by}{path} does not exist{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{said_by}{path} cannot be read as a recipe: {reason}") from error
    config = _parse(text, str(path))
    base = config.pop("base", None)
    if given is not None and base is not None:
        raise UserError(f"{path}: the recipe of a run has no base, and this one names {_shown(base)}; see who wrote it")
    keys = _spelt_out(today(OmegaConf.to_container(config), str(path), quietly=given is not None))
    layer = Layer(str(path), OmegaConf.create(beside(keys, path)), tuple(_emptied(keys)))
    if base is None:
        return [layer]
    if not isinstance(base, str):
        raise UserError(f"{path}: base must be the path of another recipe, got {_shown(base)}")
    below = Path(os.path.normpath(path.parent / base))
    if not below.exists() and Path(base).exists():
        below = Path(os.path.normpath(base))
    return [*_file_layers(below, chain), layer]


def _require_recipe(path: Path, said_by: str) -> None:
    """Raises UserError for a script, or rows, and says what makes a recipe of them. JSON may be one: it is YAML."""
    script = {".py": "trl", ".sh": "verl"}.get(path.suffix)
    if script:
        raise UserError(
            f"{said_by}{path} is a script, not a recipe; `asyncrl import {script} {path}` makes a recipe of one"
        )
    if path.name.endswith((*TEXT_FILES, *TABLE_FILES)):
        with path.open("rb") as file:
            is_recipe = path.suffix == ".json" and not file.read(100).lstrip().startswith(b"[")
        if not is_recipe:
            raise UserError(
                f"{said_by}{path} has rows, and is no recipe; `asyncrl new NAME --data {path}` writes one for them"
            )


def _override_layer(override: str) -> Layer:
    key, equals, value = override.partition("=")
    parts = key.split(".")
    if not equals or len(parts) > _MOST_PARTS or not all(part.strip() for part in parts):
        raise UserError(f"'{override:.100}' is not of the form key=value, such as max_steps=20 or trainer.ranks=1")
    try:
        require_modest(value, key)
        keys = today(OmegaConf.to_container(OmegaConf.from_dotlist([override])), "command line")
        config = OmegaConf.create(_spelt_out(keys))
        # `data.options={size: 9}` means just that.
        return Layer("command line", config, (key,) if isinstance(yaml.safe_load(value), dict) else ())
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{override}: the value is not valid YAML: {_cause(error)}") from error


def _spelt_out(keys: Any) -> Any:
    """With `env: FILE:NAME` as `env: {path: FILE:NAME}`, and data likewise: other layers may have other keys of it."""
    paths = {key: {"path": keys[key]} for key in _MAY_BE_PATHS if isinstance(keys.get(key), str)}
    return {**keys, **paths}


def _emptied(keys: Any, prefix: str = "") -> Iterator[str]:
    """The keys that a file gives as `{}`: to merge that would change nothing, so it means that nothing is left."""
    for name, value in keys.items():
        if isinstance(value, dict):
            yield from _emptied(value, f"{prefix}{name}.") if value else [f"{prefix}{name}"]


def _parse(text: str, where: str) -> DictConfig:
    try:
        require_modest(text, where)
        config = OmegaConf.create(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark else "it"
        raise UserError(f"{where}: {line} is not valid YAML: {_cause(error)}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {error.full_key}: {_cause(error)}") from error
    except AssertionError:  # a number, in OmegaConf's way
        config = None
    except (ValueError, RecursionError) as error:  # no such date, say
        raise UserError(f"{where} is not valid YAML: {_cause(error)}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{where} must hold lines of the form key: value")
    return config


def _expand_preset(layer: Layer) -> Layer:
    """The layer with its `algorithm.preset`, if it has one, spelt out: then no key of the part is left to the layers
    below, and the keys beside the preset win."""
    name = _value(layer.keys, "algorithm.preset")
    if name is None:
        return layer
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise UserError(f"{layer.where}: algorithm.preset {name} is not one of {known}{nearest(name, PRESETS)}")
    whole = {**AlgorithmRecipe().model_dump(), **PRESETS[name]}
    return replace(layer, keys=OmegaConf.merge({"algorithm": whole}, layer.keys))


def _merge(levels: list[list[Layer]], layers: list[Layer]) -> dict[str, Any]:
    """The layers, lowest first, by level: a level that names other data says all there is to say about it, and one that
    names another environment gives its `kwargs`."""
    merged = OmegaConf.create({})
    for level in levels:
        path = _value(merged, "data.path")
        named = [_value(layer.keys, "data.path") for layer in level]
        if path is not None and any(other not in (None, path) for other in named):
            for key in _OF_ONE_DATA_SET:
                merged.data.pop(key, None)
        path = _value(merged, "env.path")
        if path is not None and any(_value(layer.keys, "env.path") not in (None, path) for layer in level):
            merged.env.pop("kwargs", None)
        for layer in level:
            for key in _ONE_OR_LIST:
                if OmegaConf.is_list(_value(layer.keys, key)) or OmegaConf.is_list(_value(merged, key)):
                    _drop_other_kind(merged, layer, key)
            for key in layer.replaced:
                if OmegaConf.is_dict(_value(merged, key)):
                    OmegaConf.update(merged, key, {}, merge=False)
            try:
                merged = OmegaConf.merge(merged, layer.keys)
            except TypeError as error:
                raise UserError(f"{layer.where}: puts a list where keys are needed, or keys where a list is") from error
    try:
        require_modest_values(merged)
        return OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        where = _origin(layers, tuple(str(error.full_key).split(".")))
        raise UserError(f"{where or layers[0].where}: {error.full_key}: {_cause(error)}") from error


def _drop_other_kind(merged: DictConfig, layer: Layer, key: str) -> None:
    """Where a layer has a list, and what is below is none, or the reverse, the layer says all. Raises UserError for a
    key of what is a list below."""
    above = _value(layer.keys, key)
    if above is None:
        return
    if OmegaConf.is_dict(above) and "path" not in above and OmegaConf.is_list(_value(merged, key)):
        name = next(iter(above), "")
        raise UserError(
            f"{layer.where}: {key} is a list below, so {key}.{name} is of none of them; give the whole list"
        )
    merged.pop(key, None)


def _value(keys: DictConfig, key: str) -> Any:
    """None for what is not there, or cannot be worked out yet."""
    try:
        return OmegaConf.select(keys, key, throw_on_resolution_failure=False)
    except OmegaConfBaseException:  # a key of a list
        return None


def _origin(layers: list[Layer], place: tuple[Any, ...]) -> str | None:
    """The last layer that sets the key at `place`."""
    for layer in reversed(layers):
        node: Any = OmegaConf.to_container(layer.keys)
        for part in place:
            if not (part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)):
                break
            node = node[part]
        else:
            return layer.where
    return None


def _escaped(value: Any) -> Any:
    """`value` with every `${` in its texts marked as no interpolation."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


# -- sentences


def _sentence(fault: ErrorDetails, key: str) -> str:
    kind, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    if kind in _UNKNOWN:
        return f"{whole(key, value)} is not a key{meant(whole(key, value))}"
    if kind == "missing":
        return f"{key} is missing; add it"
    if kind == "literal_error":
        known = re.findall(r"'(\w+)'", context["expected"])
        return f"{key} must be {context['expected']}, got {_shown(value)}{nearest(str(value), known)}"
    expected = _EXPECTED.get(kind) or _EXPECTED.get(kind.partition("_")[0])
    if not key:
        return fault["msg"]
    if expected is None:
        return f"{key}: {fault['msg']}, got {_shown(value)}"
    quotes = "; put it in quotes" if kind == "string_type" and isinstance(value, bool | int | float) else ""
    bounds = {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in context.items()}
    return f"{key} must be {expected.format(**bounds)}, got {_shown(value)}{quotes}"


def _shown(value: Any) -> str:
    """The value as YAML has it, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."


def _cause(error: Exception) -> str:
    """What a YAML or OmegaConf error says, without its pictures of the place."""
    said = str(error).splitlines()[0].removeprefix("UserError raised while resolving interpolation: ")
    return getattr(error, "problem", None) or said
