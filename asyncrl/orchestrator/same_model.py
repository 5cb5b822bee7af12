"""Whether a run goes on with the model that it was started with: seen before anything is started or written.

`model.json` in the run directory has the fingerprint of a local folder: its configuration, the names, types and shapes
of its tensors, and a few bytes of each. A hub name stands for itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from asyncrl.checkpoint import files
from asyncrl.errors import UserError
from asyncrl.models import MODEL_FILE, fingerprint
from asyncrl.recipe.schema import Recipe
from asyncrl.storage.run_dir import parsed, read, replace
from asyncrl.trainer.loading import some

Shapes = Mapping[str, tuple[int, ...]]


def record(run_dir: Path, model: str) -> None:
    """Remember the model that a run starts with."""
    replace(run_dir / MODEL_FILE, json.dumps({"model": model, "fingerprint": fingerprint(model)}))


def require_same(run_dir: Path, recipe: Recipe, before: Recipe, trained: Shapes, checkpoint: Path | None) -> None:
    """Raises UserError if the recipe's model or adapters are not those of the run, whose recipe was `before`.

    trained: shapes of what would be trained, by name. checkpoint: the one to go on from.
    """
    lora, its = recipe.trainer.lora, before.trainer.lora
    for key in type(lora).model_fields:
        if getattr(lora, key) != getattr(its, key):
            raise UserError(
                f"trainer.lora.{key} is {getattr(lora, key)}, but the run was started with {getattr(its, key)}; "
                "leave it as it was, or train anew"
            )
    require_model(run_dir, recipe.model, before.model)
    if checkpoint is not None:
        _require_fit(checkpoint, recipe, trained)


def require_model(run_dir: Path, model: str, before: str) -> None:
    """Raises UserError if `model` is not the run's, which its recipe calls `before`."""
    known = read(run_dir, MODEL_FILE)
    if known is not None and parsed(known).get("fingerprint") != fingerprint(model):
        raise UserError(
            f"model {model} is not the one that the run was started with, {before}: its tensors or its config.json "
            "differ; name that one, or train anew"
        )


def _require_fit(checkpoint: Path, recipe: Recipe, trained: Shapes) -> None:
    saved = files.shapes(checkpoint / "trainer")
    own = {name.removeprefix("model."): shape for name, shape in saved.items() if name.startswith("model.")}
    found = {
        "it lacks": trained.keys() - own.keys(),
        "nothing takes": own.keys() - trained.keys(),
        "of another shape are": {name for name in trained.keys() & own.keys() if trained[name] != own[name]},
    }
    if faults := [f"{fault} {some(names)}" for fault, names in found.items() if names]:
        raise UserError(
            f"model {recipe.model} does not fit {checkpoint}: {'; '.join(faults)}. Resume with the model and the "
            "trainer.lora of before, or train anew"
        )
    if recipe.algorithm.advantage == "gae" and not any(name.startswith("critic.") for name in saved):
        raise UserError(f"algorithm.advantage gae: {checkpoint} has no critic; leave it as it was, or train anew")
