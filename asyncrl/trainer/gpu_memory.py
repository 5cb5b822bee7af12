"""What a trainer does that finds no more memory on its GPU: it says which keys to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from asyncrl.errors import RunFailed
from asyncrl.recipe.trainer import TrainerRecipe


@contextmanager
def explained(recipe: TrainerRecipe, what: str) -> Iterator[None]:
    """Raises RunFailed where torch raises OutOfMemoryError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        used = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        keys = [f"lower trainer.tokens_per_microbatch ({recipe.tokens_per_microbatch})"]
        if not recipe.gradient_checkpointing:
            keys.append("set trainer.gradient_checkpointing=true")
        if not recipe.optimizer.offload:
            keys.append("set trainer.optimizer.offload=true")
        more = "trainer.gpus_per_rank" if recipe.gpus_per_rank < 1 else "trainer.ranks"
        raise RunFailed(
            f"the trainer ran out of GPU memory in {what}, with {used:.1f} GiB of its own: {', '.join(keys)}, or raise "
            f"{more}; `asyncrl plan` says what fits"
        ) from error
