"""Where a model's sizes come from: its directory, the hub's cache on this machine, or the table below.

The table has the models that `recipes/` and `asyncrl new` name, as their config.json on the hub has them: the hub
itself is not asked, a plan needs no network.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from asyncrl.errors import UserError
from asyncrl.models import TINY_LLAMA
from asyncrl.planner.shape import Shape
from asyncrl.storage.small_files import json_object, of_model


def _config(family: str, *sizes: int, tied: bool = False, **more: Any) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    keys = dict(zip((*names, "vocab_size"), sizes, strict=True))
    return {"model_type": family, **keys, "tie_word_embeddings": tied, **more}


_QWEN2_5_7B = _config("qwen2", 3584, 28, 28, 4, 18944, 152_064)
PUBLISHED = {
    TINY_LLAMA: _config("llama", 64, 2, 2, 1, 128, 259, tied=True, head_dim=32),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _config("llama", 576, 30, 9, 3, 1536, 49_152, tied=True),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _config("llama", 960, 32, 15, 5, 2560, 49_152, tied=True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _config("llama", 2048, 24, 32, 32, 8192, 49_152, tied=True),
    "Qwen/Qwen2.5-0.5B-Instruct": _config("qwen2", 896, 24, 14, 2, 4864, 151_936, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _config("qwen2", 1536, 28, 12, 2, 8960, 151_936, tied=True),
    "Qwen/Qwen2.5-3B": _config("qwen2", 2048, 36, 16, 2, 11_008, 151_936, tied=True),
    "Qwen/Qwen2.5-3B-Instruct": _config("qwen2", 2048, 36, 16, 2, 11_008, 151_936, tied=True),
    "Qwen/Qwen2.5-7B": _QWEN2_5_7B,
    "Qwen/Qwen2.5-7B-Instruct": _QWEN2_5_7B,
    "Qwen/Qwen2.5-Coder-7B-Instruct": _QWEN2_5_7B,
    "Qwen/Qwen3-1.7B": _config("qwen3", 2048, 28, 16, 8, 6144, 151_936, tied=True, head_dim=128),
    "Qwen/Qwen3-8B": _config("qwen3", 4096, 36, 32, 8, 12_288, 151_936, head_dim=128),
    "Qwen/Qwen3-32B": _config("qwen3", 5120, 64, 64, 8, 25_600, 151_936, head_dim=128),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _config("qwen2", 1536, 28, 12, 2, 8960, 151_936),
    "meta-llama/Llama-3.1-8B-Instruct": _config("llama", 4096, 32, 32, 8, 14_336, 128_256),
}


def find(model: str, base_dir: Path) -> tuple[Shape, str]:
    """A model's shape, and where it is from. Raises UserError if nothing here knows its sizes."""
    for folder in (base_dir / model, *_cached(model)):
        config = folder / "config.json"
        if config.is_file():
            where = model if folder == base_dir / model else "the hub's cache"
            with of_model(config):
                return Shape.of_config(json_object(config), model), f"config.json of {where}"
    if model in PUBLISHED:
        return Shape.of_config(PUBLISHED[model], model), "published sizes"
    raise UserError(
        f"model {model}: nothing here knows its sizes; download it, and name the directory, or take one of "
        f"{', '.join(name for name in PUBLISHED if name != TINY_LLAMA)}"
    )


def _cached(model: str) -> list[Path]:
    """The model's snapshots, the newest first."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    snapshots = hub / f"models--{model.replace('/', '--')}" / "snapshots"
    return sorted(snapshots.glob("*/"), key=lambda folder: -folder.stat().st_mtime) if snapshots.is_dir() else []
