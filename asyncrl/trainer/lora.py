"""LoRA through peft: adapters beside frozen weights; switched off, the model is its own reference policy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from asyncrl.errors import UserError
from asyncrl.headers import read_headers
from asyncrl.models import weight_files
from asyncrl.recipe.trainer import LoraRecipe
from asyncrl.trainer.loading import some
from asyncrl.trainer.sharding import master
from asyncrl.weights.lora import Adapters, adapted_modules, merge, weights_of


def inject(model: Any, recipe: LoraRecipe) -> Any:
    """The model with adapters, which alone need a gradient; it computes what it did before, since B is zero.

    Raises UserError if `targets` name nothing, or what takes no adapter that can be merged.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = _targets(model, recipe)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=[f"model.{name}" for name in targets],
        lora_dropout=0.0,
        fan_in_fan_out=stored_in_out(targets.values()),
    )
    # In a model that it knows peft would take some names for those of fused experts.
    inject_adapter_in_model(config, torch.nn.ModuleDict({"model": model}))
    return model


def _targets(model: Any, recipe: LoraRecipe) -> dict[str, torch.nn.Module]:
    """The modules to adapt, by name. peft's rules: names or their last parts, or a regular expression; `all-linear`
    leaves out the output head."""
    modules, head = dict(model.named_modules()), model.get_output_embeddings()
    key = f"trainer.lora.targets {recipe.targets}"
    if recipe.targets == "all-linear":
        return {n: m for n, m in modules.items() if _takes_adapter(m, embedding=False) and m is not head}
    chosen: dict[str, torch.nn.Module] = {}
    for target in recipe.names or [str(recipe.targets)]:
        pattern = rf"(.*\.)?{re.escape(target)}" if recipe.names else target
        found = {name: module for name, module in modules.items() if re.fullmatch(pattern, name)}
        if not found:
            raise UserError(f"{key}: {type(model).__name__} has no module {target}; its last is {list(modules)[-1]}")
        chosen |= found
    if head in chosen.values():
        raise UserError(f"{key}: the output head takes no adapter; leave it out")
    if refused := [name for name, module in chosen.items() if not _takes_adapter(module)]:
        raise UserError(f"{key}: adapters are for linear layers and embeddings, not for {some(refused)}; leave it out")
    return chosen


def _takes_adapter(module: torch.nn.Module, embedding: bool = True) -> bool:
    """Whether an adapter of it can be merged: it multiplies by one matrix."""
    kinds = (torch.nn.Linear, torch.nn.Embedding) if embedding else torch.nn.Linear
    return isinstance(module, kinds) or _is_transposed(module)


def stored_in_out(modules: Iterable[torch.nn.Module]) -> bool:
    """peft's `fan_in_fan_out`, of the modules to adapt."""
    return any(map(_is_transposed, modules))


def _is_transposed(module: torch.nn.Module) -> bool:
    """A linear layer whose weight is stored [in, out], as GPT-2's are."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def adapters(model: torch.nn.Module, recipe: LoraRecipe) -> Adapters:
    """How those of a model are merged."""
    adapted = [(name, module.base_layer) for name, module in model.named_modules() if hasattr(module, "lora_A")]
    return Adapters(recipe.scale, tuple(name for name, base in adapted if _is_transposed(base)))


def left_out(model: torch.nn.Module) -> list[str]:
    """Matrices that no adapter could be given: those of fused experts and of routers."""
    owned = {id(m.weight) for m in model.modules() if _takes_adapter(m)}
    return [name for name, p in model.named_parameters() if ".lora_" not in name and p.dim() > 1 and id(p) not in owned]


def require_in_folder(model: torch.nn.Module, path: str) -> None:
    """Raises UserError if an engine that merges the adapters into a folder's tensors would not find some of these."""
    saved = read_headers(weight_files(path))
    modules = adapted_modules(name for name, _ in model.named_parameters() if ".lora_" in name)
    found = {module for name, module in weights_of(modules).items() if name in saved}
    if saved and found != modules:
        raise UserError(
            f"trainer.lora.targets: {path} names its tensors so that the adapters on {some(modules - found)} could not "
            "be merged by the engine; leave them out"
        )


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


def has_tied_head(model: Any) -> bool:
    """Whether the output head's weight is the embedding's, which may have an adapter."""
    embedding = model.get_input_embeddings()
    return getattr(embedding, "base_layer", embedding).weight is model.get_output_embeddings().weight


def head_weight(model: Any) -> torch.Tensor:
    """The output head's weight [V, d]. Where it is the embedding's, an adapter on that counts in both places."""
    embedding, weight = model.get_input_embeddings(), model.get_output_embeddings().weight
    adapted = hasattr(embedding, "base_layer")
    if not adapted or not has_tied_head(model) or embedding.disable_adapters:
        return weight
    return weight + embedding.get_delta_weight("default")


def merged(model: torch.nn.Module, trained: Mapping[str, torch.Tensor], recipe: LoraRecipe) -> dict[str, torch.Tensor]:
    """All weights of a model whose trained ones are these; adapters are merged into theirs, on the host: a GPU has no
    room for a second model."""
    if not recipe.rank:
        return dict(trained)
    base = ((name, weight.cpu()) for name, weight in base_weights(model))
    return dict(merge(base, trained, adapters(model, recipe)))


def base_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights but the adapters', tied ones once, under the names they have without adapters."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            yield without_adapters(name), master(parameter).detach()


def without_adapters(name: str) -> str:
    """The name that a parameter or buffer has in the model's folder: peft puts what it wraps into another module."""
    return name.replace(".base_layer.", ".")
