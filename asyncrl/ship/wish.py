"""What is to be made of which checkpoint, and whether it can be; without torch, so that a slip is answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asyncrl.errors import UserError
from asyncrl.recipe.load import load
from asyncrl.recipe.schema import Recipe
from asyncrl.storage import atomic
from asyncrl.storage.run_dir import require_plain, text


@dataclass(frozen=True)
class Wish:
    """What is to be made of which checkpoint."""

    step: int | None = None
    """None: the newest."""
    adapter: bool = False
    """LoRA's adapters as PEFT has them, in place of the merged model."""
    ema: bool = False
    """The running mean of the weights (`trainer.ema`) in the place of the last ones."""
    dtype: str | None = None
    """bfloat16, float16 or float32; None: that of the weights that the generators had."""


def checked(run_dir: Path, wish: Wish) -> tuple[Recipe, Path]:
    """The run's recipe, and the checkpoint. Raises UserError for what cannot be had."""
    require_plain(run_dir)
    recipe = load(run_dir / "recipe.yaml", (), text(run_dir, "recipe.yaml"))
    if recipe.trainer.backend != "fsdp":
        raise UserError(
            f"export: only the weights of trainer.backend fsdp are known here, not those of {recipe.trainer.backend}; "
            f"what it exports itself is in the folders model of {run_dir}/checkpoints"
        )
    if wish.adapter and not recipe.trainer.lora.rank:
        raise UserError(f"export: {run_dir} has trained all weights (trainer.lora.rank 0); leave --adapter out")
    if wish.ema and recipe.trainer.ema is None:
        raise UserError(f"export: {run_dir} has kept no running mean of its weights (trainer.ema); leave --ema out")
    return recipe, atomic.chosen(run_dir, wish.step)
