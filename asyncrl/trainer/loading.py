"""Loading a model whole: what the folder holds is what the model has, name for name and shape for shape.

transformers fills what a folder lacks with random numbers and leaves out what it does not know, and says so in a report
that is easily missed. Here both are errors. Tied heads, and names that the model's class itself ignores, are no fault.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from asyncrl.errors import UserError
from asyncrl.headers import read_headers
from asyncrl.models import is_local, local_config, weight_files

_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16}


def from_folder(path: str, **options: Any) -> torch.nn.Module:
    """A transformers causal language model with fp32 weights; `options` go to `from_pretrained`.

    Raises UserError if it is neither a local model nor one the hub can give, or if its tensors are not the model's.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    # Of the loader, and of saving later: the phases of a run are said in one place.
    disable_progress_bar()
    options = {"dtype": torch.float32, "local_files_only": is_local(path), **options}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model: {path} could not be loaded: {str(error).splitlines()[0]}") from error
    if faults := _faults(info):
        raise UserError(
            f"model: the tensors of {path} are not those of {type(model).__name__}: {'; '.join(faults)}. "
            "Name a whole folder, as save_pretrained writes it"
        )
    if _has_own_head(model):
        raise UserError(
            f"model: config.json of {path} ties the output head to the embedding, but the folder has another head; set "
            "tie_word_embeddings to false there if the head is meant, or remove it"
        )
    whole: torch.nn.Module = model
    return whole


def as_stored(path: str) -> torch.nn.Module:
    """The same on the host, its weights in the type of the folder's files, of which they are views: many processes of a
    machine share them, and what is used of them is read when it is used. Of other than safetensors files a copy."""
    stored = {header.dtype for header in read_headers(weight_files(path)).values()}
    dtype = _TYPES.get(next(iter(stored)), torch.float32) if len(stored) == 1 else torch.float32
    model = from_folder(path, dtype=dtype)
    if dtype != torch.float32:
        _buffers_in_fp32(model)
    return model


def _buffers_in_fp32(model: Any) -> None:
    """As they would be in a model that was made in fp32: the class computes some (an embedding's scale, say) in the
    type of its weights."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        exact = type(model)._from_config(model.config, dtype=torch.float32)
    computed = dict(exact.named_non_persistent_buffers())
    for name, buffer in model.named_buffers():
        module, _, key = name.rpartition(".")
        exactly = buffer.float() if buffer.is_floating_point() else buffer
        model.get_submodule(module)._buffers[key] = computed.get(name, exactly)


def outline(path: str) -> torch.nn.Module:
    """The same on the meta device: names, shapes and types without a tensor, in a fraction of a second.

    Of a hub name only the configuration is fetched: its tensors are compared when they are loaded.
    """
    if is_local(path):
        _require_layers(path)
        return from_folder(path, device_map="meta")
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            model: torch.nn.Module = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        raise UserError(f"model: {path} could not be loaded: {str(error).splitlines()[0]}") from error
    return model


def _require_layers(path: str) -> None:
    """Raises UserError for a configuration of more layers than there are tensors: an outline of them takes memory."""
    config, tensors = local_config(Path(path)), read_headers(weight_files(path))
    layers = {**config, **(config.get("text_config") or {})}.get("num_hidden_layers")
    if isinstance(layers, int) and tensors and layers > len(tensors):
        raise UserError(
            f"model: config.json of {path} says {layers} layers (num_hidden_layers), and its files hold {len(tensors)} "
            "tensors; name a whole folder, as save_pretrained writes it"
        )


def _has_own_head(model: Any) -> bool:
    """Whether the head is untied against the configuration, by which engines go: transformers does that where a folder
    has both with different numbers, which it cannot see on the meta device."""
    tied = model._tied_weights_keys and model.config.get_text_config().tie_word_embeddings
    weights = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return bool(tied) and weights[0] is not weights[1] and not weights[0].is_meta


def _faults(info: dict[str, Any]) -> list[str]:
    shapes = [f"{name} {list(ours)} for {list(own)}" for name, ours, own in info["mismatched_keys"]]
    found = {
        "it lacks": info["missing_keys"],
        "nothing takes": info["unexpected_keys"],
        "of another shape are": shapes,
        "not read were": info["error_msgs"],
    }
    return [f"{fault} {some(names)}" for fault, names in found.items() if names]


def some(names: Iterable[str]) -> str:
    """The first few of many, for people: `a, b, c and 18 more`."""
    listed = sorted(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 4 else ""
    return ", ".join(listed[:3] if more else listed) + more
