"""LoRA through peft: adapters beside frozen weights; switched off, the model is its own reference policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from asyncrl.errors import UserError
from asyncrl.recipe.schema import LoraRecipe


def inject(model: torch.nn.Module, recipe: LoraRecipe) -> torch.nn.Module:
    """The model with adapters, which alone need a gradient; it computes what it did before, since B is zero.

    Raises UserError if no module has a name in `targets`, or the output head has.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=recipe.targets, lora_dropout=0.0)
    try:
        adapted: torch.nn.Module = inject_adapter_in_model(config, model)
    except ValueError as error:
        raise UserError(f"trainer.lora.targets {recipe.targets}: {str(error).splitlines()[0]}") from error
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise UserError(f"trainer.lora.targets {recipe.targets}: the output head takes no adapter; leave it out")
    return adapted


@contextmanager
def switched_off(model: torch.nn.Module) -> Iterator[None]:
    """Within it the model is the base alone."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def base_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The frozen weights under the names they have without adapters."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            yield name.replace(".base_layer.", "."), parameter.detach()
