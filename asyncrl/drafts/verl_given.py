"""What a configuration of verl gives: names with dots, and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asyncrl.drafts import shell
from asyncrl.drafts.carried import Unresolved
from asyncrl.errors import UserError
from asyncrl.recipe.paths import leaves
from asyncrl.recipe.unfolded import interpolations_bounded, require_modest
from asyncrl.storage import small_files


def read(path: Path) -> tuple[dict[str, Any], int]:
    """Of a YAML, or of a shell script; and how many overrides of a script stand in branches, and are not taken. Raises
    UserError for what is neither."""
    try:
        text = small_files.read(path).decode()
    except FileNotFoundError:
        raise UserError(f"import: {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"import: {path} cannot be read as text: {error}") from error
    return (_of_yaml(path, text), 0) if path.suffix in (".yaml", ".yml") else _of_shell(path, text)


def _of_yaml(path: Path, text: str) -> dict[str, Any]:
    try:
        require_modest(text, str(path))
        config = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, AssertionError, RecursionError) as error:
        raise UserError(f"import: {path} is not valid YAML: {str(error).splitlines()[0]}") from error
    with interpolations_bounded():
        raw = OmegaConf.to_container(config, throw_on_missing=False)
    if not isinstance(raw, dict) or not {"data", "actor_rollout_ref", "algorithm", "trainer"} & set(raw):
        raise UserError(f"import: {path} has none of verl's parts data, actor_rollout_ref, algorithm and trainer")
    raw.pop("defaults", None)
    return {k: Unresolved(v) if _is_open(v) else v for k, v in leaves(raw) if not k.endswith("_target_") and v != "???"}


def _is_open(value: Any) -> bool:
    return isinstance(value, str) and ("${" in value or "$(" in value)


def _of_shell(path: Path, text: str) -> tuple[dict[str, Any], int]:
    try:
        found, in_branches = shell.overrides(text)
    except shell.Several as several:
        raise UserError(
            f"import: {path} calls verl {several} times; leave one of them in a copy of it, and name that"
        ) from None
    if not found:
        raise UserError(
            f"import: {path} has no key=value of verl, such as data.train_files=...; name its YAML, or the script that "
            "calls verl.trainer.main_ppo"
        )
    given: dict[str, Any] = {}
    for name, value in found.items():
        try:
            given[name] = Unresolved(value) if "$" in value else _number(yaml.safe_load(value))
        except (yaml.YAMLError, ValueError, RecursionError):  # of a date that is none, say
            given[name] = value
    return given, in_branches


def _number(value: Any) -> Any:
    """`1e-6` is a number to hydra, and text to YAML 1.1."""
    try:
        return float(value) if isinstance(value, str) and value[:1] in "-.0123456789" else value
    except ValueError:
        return value
