"""A checkpoint as a folder to hand over: weights, tokenizer, ends and a card, whole or not there.

    trainer/   fp32 weights, or adapters  ->  safetensors in the type asked for; adapters merged, or as PEFT has them
    model/     what training rendered with  ->  tokenizer, chat template, generation config
    recipe.yaml, metrics.jsonl  ->  README.md, and what else ended a completion
No code of the run is loaded, and nothing in its directory is written.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from asyncrl.checkpoint import files
from asyncrl.envs.template import Template
from asyncrl.errors import UserError
from asyncrl.models import TINY_LLAMA, load_tokenizer, make_tiny_llama
from asyncrl.orchestrator import same_model
from asyncrl.recipe.schema import Recipe
from asyncrl.ship.adapter import write_adapter
from asyncrl.ship.card import card
from asyncrl.ship.wish import Wish, checked
from asyncrl.storage import atomic
from asyncrl.trainer.ema import PREFIX, as_weights
from asyncrl.trainer.export import names_of, write_model
from asyncrl.trainer.loading import as_stored, from_folder
from asyncrl.trainer.lora import inject, merged
from asyncrl.trainer.model import trained_shapes

logger = logging.getLogger(__name__)

_GENERATION = "generation_config.json"


def export(run_dir: Path, wish: Wish, out: Path | None) -> Path:
    """Write the folder and return it; `out` None: RUN-step-N here. Raises UserError for what cannot be had, or if the
    folder exists; RunFailed if what was written would not load."""
    recipe, checkpoint = checked(run_dir, wish)
    lora = recipe.trainer.lora.rank > 0
    step = atomic.step_of(checkpoint)
    out = out or Path(f"{run_dir.resolve().name}-step-{step}{'-adapter' * wish.adapter}{'-ema' * wish.ema}")
    dtype: torch.dtype = getattr(torch, wish.dtype or recipe.weights.dtype)
    with atomic.new_folder(out) as folder, _still_there(checkpoint), _initial_model(recipe, run_dir) as base:
        saved: Mapping[str, Any] = files.read(checkpoint / "trainer", prefix=PREFIX if wish.ema else "model.")
        saved = as_weights(saved) if wish.ema else saved
        weights = {name.removeprefix("model."): tensor[...] for name, tensor in saved.items()}
        if lora:
            same_model.require_same(run_dir, recipe, recipe, trained_shapes(base, recipe), checkpoint)
            _say_if_untrained(weights)
        if wish.adapter:
            write_adapter(weights, recipe, base, folder, dtype)
        else:
            _write_whole(weights, recipe, base if lora else str(checkpoint / "model"), folder, dtype)
        _copy_beside(checkpoint / "model", folder)
        _end_as_in_training(folder, recipe)
        readme = folder / "README.md"
        readme.write_text(card(run_dir, recipe, step, wish, dtype))
        for path in folder.glob("*.safetensors"):
            shutil.copymode(readme, path)  # whose library lets only the owner read
    return out


@contextmanager
def _still_there(checkpoint: Path) -> Iterator[None]:
    """A run that goes on deletes old checkpoints: what then fails is no fault of theirs."""
    try:
        yield
    except Exception as error:
        if (checkpoint / "COMPLETE").exists():
            raise
        raise UserError(
            f"export: the run deleted {checkpoint.name} meanwhile; export the newest, or let it keep more "
            "(checkpoint.keep_last, keep_every)"
        ) from error


@contextmanager
def _initial_model(recipe: Recipe, run_dir: Path) -> Iterator[str]:
    """Where it lies, for those who load it."""
    if recipe.model != TINY_LLAMA:
        yield recipe.model
    elif (made := run_dir / "initial_model").is_dir():
        yield str(made)
    else:
        with TemporaryDirectory() as scratch:
            yield str(make_tiny_llama(Path(scratch), recipe.seed))


def _write_whole(
    weights: Mapping[str, torch.Tensor], recipe: Recipe, like: str, folder: Path, dtype: torch.dtype
) -> None:
    """`like`: a model whose weights are adapted, or replaced; what is no weight comes from it."""
    lora = recipe.trainer.lora
    model = inject(from_folder(like), lora) if lora.rank else as_stored(like)
    write_model(model, merged(model, weights, lora), names_of(model), folder, dtype)


def _say_if_untrained(weights: Mapping[str, torch.Tensor]) -> None:
    """An adapter begins with B = 0, which changes nothing."""
    second = [tensor for name, tensor in weights.items() if ".lora_B." in name or ".lora_embedding_B." in name]
    if not any(bool(tensor.any()) for tensor in second):
        logger.warning("the adapters are as they began: the exported model computes what the initial one does")


def _copy_beside(model: Path, folder: Path) -> None:
    """Tokenizer, chat template and generation config as the checkpoint has them."""
    for path in sorted(model.iterdir()):
        is_weight = path.suffix == ".safetensors" or path.name.endswith(".index.json")
        if path.is_file() and not is_weight and path.name != "config.json":
            shutil.copyfile(path, folder / path.name)


def _end_as_in_training(folder: Path, recipe: Recipe) -> None:
    """What ended completions besides the generation config's own end tokens does so for who serves the model."""
    tokenizer, path = load_tokenizer(str(folder)), folder / _GENERATION
    ends = {*recipe.rollout.stop_token_ids, tokenizer.eos_token_id}
    if recipe.env is not None and tokenizer.chat_template:
        ends |= set(Template(tokenizer, recipe.sources[0].chat_template_kwargs).stop_token_ids)
    config = json.loads(path.read_text()) if path.exists() else {}
    known = config.get("eos_token_id")
    known = known if isinstance(known, list) else [known]
    if more := sorted(ends - {*known, None}):
        config["eos_token_id"] = [*(end for end in known if end is not None), *more]
        path.write_text(json.dumps(config, indent=2))
