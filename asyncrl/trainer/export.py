"""The model folder of a checkpoint: what the model's own `save_pretrained` would write of it, in one type.

Buffers that belong to the model's state (a router's bias, say) are written as they are, and so is what its class keeps
in fp32; `generation_config.json` is the initial model's, byte for byte.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from asyncrl.errors import RunFailed, UserError
from asyncrl.headers import read_headers
from asyncrl.models import is_local, weight_files
from asyncrl.trainer.loading import from_folder, some
from asyncrl.trainer.lora import base_weights, without_adapters

_GENERATION = "generation_config.json"
_SHARD = "5GB"
"""Largest file of weights: what hubs and slow links bear."""
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def names_of(model: Any) -> frozenset[str]:
    """Of the weights to export. Taken while nothing computes: FSDP2 puts other tensors in the place of the model's one
    by one, so that for a moment a tied head looks like a weight of its own."""
    return frozenset(name for name, _ in base_weights(model))


def write_model(
    model: Any, weights: Mapping[str, torch.Tensor], names: Set[str], folder: Path, dtype: torch.dtype
) -> None:
    """Write a transformers model with these weights, of these `names` and no others, whole, in `dtype`.

    Raises RunFailed, with the names, if they are others, or if what was written would not load.
    """
    _require_same(weights.keys(), names)
    tensors = {name: tensor.to("cpu", exported_type(model, name, dtype)) for name, tensor in weights.items()}
    with _generation_config(model, folder):
        model.save_pretrained(folder, state_dict={**tensors, **dict(buffers(model))}, max_shard_size=_SHARD)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    _require_types(model, folder, dtype)
    try:
        from_folder(str(folder), device_map="meta")
    except UserError as error:
        raise RunFailed(f"the exported model would not load: {error}") from error


def _require_types(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Raises RunFailed if a tensor in the files is of another type than was asked for."""
    own = {name for name, _ in buffers(model)}
    others = {
        name
        for name, header in read_headers(weight_files(str(folder))).items()
        if name not in own and header.dtype != _NAMES[exported_type(model, name, dtype)]
    }
    if others:
        raise RunFailed(f"the exported model was to be of {dtype}, and its files hold others: {some(others)}")


def exported_type(model: Any, name: str, dtype: torch.dtype) -> torch.dtype:
    """Of a parameter: `dtype`, or fp32 if the model's class keeps it so."""
    in_fp32 = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    return torch.float32 if any(part in name for part in in_fp32) else dtype


def buffers(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Those that are part of the model's state, contiguous, under the names that they have without adapters."""
    computed = {name for name, _ in model.named_non_persistent_buffers()}
    for name, buffer in model.named_buffers():
        if name not in computed:
            yield without_adapters(name), buffer.detach().cpu().contiguous()


def _require_same(found: Set[str], expected: Set[str]) -> None:
    lacking, unknown = expected - found, found - expected
    if lacking or unknown:
        faults = [f"{fault} {some(n)}" for fault, n in (("lack", lacking), ("hold", unknown)) if n]
        raise RunFailed(f"the weights to export are not the model's: they {' and '.join(faults)}")


@contextmanager
def _generation_config(model: Any, folder: Path) -> Iterator[None]:
    """The initial model's own file, which transformers may read but not write (a temperature without sampling)."""
    from transformers import GenerationConfig
    from transformers.utils import cached_file

    path = model.name_or_path
    found = cached_file(path, _GENERATION, local_files_only=is_local(path), _raise_exceptions_for_missing_entries=False)
    before = model.generation_config
    if found:
        model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before
    if found:
        shutil.copyfile(found, folder / _GENERATION)
