"""The trainer's model: fp32 master weights, packed attention."""

from __future__ import annotations

import torch

from asyncrl.errors import UserError
from asyncrl.models import is_local
from asyncrl.recipe.schema import Recipe
from asyncrl.trainer.lora import inject


def load_model(path: str, recipe: Recipe, device: torch.device) -> torch.nn.Module:
    """A transformers causal language model with fp32 master weights and the packed attention.

    Raises UserError if it is neither a local model nor one the hub can give.
    """
    from transformers import AutoModelForCausalLM

    from asyncrl.trainer.attention import NAME

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation=NAME, local_files_only=is_local(path)
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model: {path} could not be loaded: {str(error).splitlines()[0]}") from error
    if recipe.trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if recipe.trainer.lora.rank:
        model = inject(model, recipe.trainer.lora)
    return model.to(device)
