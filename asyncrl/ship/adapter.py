"""Trained adapters as PEFT has them: adapter_model.safetensors and adapter_config.json.

here   model.layers.0.self_attn.q_proj.lora_A.default.weight
PEFT   base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from asyncrl.errors import RunFailed, UserError
from asyncrl.recipe.schema import Recipe
from asyncrl.trainer.loading import outline, some
from asyncrl.trainer.lora import has_tied_head, stored_in_out
from asyncrl.weights.lora import adapted_modules

_FIRST = "base_model.model."


def write_adapter(
    weights: Mapping[str, torch.Tensor], recipe: Recipe, base: str, folder: Path, dtype: torch.dtype
) -> None:
    """Write adapters, under the names that they are trained by, for the model in `base`, which the recipe names.

    Raises UserError if PEFT has no way to say what was trained; RunFailed if it would not take what was written.
    """
    from peft import LoraConfig

    lora, model, modules = recipe.trainer.lora, outline(base), adapted_modules(weights)
    embedding = {name for name, module in model.named_modules() if module is model.get_input_embeddings()}
    if has_tied_head(model) and embedding & modules:
        raise UserError(
            f"export: the adapter on {some(embedding)} counts in the output head too, which is tied to it, and PEFT's "
            "files cannot say that; leave --adapter out"
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=recipe.model,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=_targets(model, modules),
        fan_in_fan_out=stored_in_out(model.get_submodule(name) for name in modules),
        inference_mode=True,
    )
    config.save_pretrained(folder)
    tensors = {_FIRST + name.replace(".default", ""): t.to(dtype).contiguous() for name, t in weights.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _require_taken(model, folder, {name: tuple(tensor.shape) for name, tensor in tensors.items()})


def _targets(model: torch.nn.Module, modules: set[str]) -> list[str]:
    """Last parts of the names if they mean these modules and no others, else whole names."""
    last = {name.rpartition(".")[2] for name in modules}
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in last}
    return sorted(last if meant == modules else modules)


def _require_taken(model: Any, folder: Path, written: Mapping[str, tuple[int, ...]]) -> None:
    """Raises RunFailed if PEFT makes other adapters of the configuration than the file has; `model` is used up."""
    from peft import LoraConfig, get_peft_model

    made = get_peft_model(model, LoraConfig.from_pretrained(folder))
    expected = {n.replace(".default", ""): tuple(p.shape) for n, p in made.named_parameters() if ".lora_" in n}
    if expected != written:
        others = {name for name, _ in expected.items() ^ written.items()}
        raise RunFailed(f"PEFT would make other adapters of {folder.name} than were trained: {some(others)}")
