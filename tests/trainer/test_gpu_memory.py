"""Out of memory on a GPU, in one sentence."""

from __future__ import annotations

import pytest
import torch

from asyncrl.errors import RunFailed
from asyncrl.recipe.trainer import TrainerRecipe
from asyncrl.trainer.gpu_memory import explained


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {},
            "microbatch (100), set trainer.gradient_checkpointing=true, set trainer.optimizer.offload=true, or raise "
            "trainer.ranks",
        ),
        (
            {"gradient_checkpointing": True, "gpus_per_rank": 0.5, "optimizer": {"offload": True}},
            "microbatch (100), or raise trainer.gpus_per_rank;",
        ),
    ],
)
def test_it_names_the_keys_that_can_be_changed(keys: dict[str, object], said: str) -> None:
    recipe = TrainerRecipe(tokens_per_microbatch=100, **{"gpus_per_rank": 1, "gradient_checkpointing": False} | keys)
    with pytest.raises(RunFailed) as caught, explained(recipe, "step 3"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 108.00 MiB.")
    assert "ran out of GPU memory in step 3, with 0.0 GiB" in str(caught.value)
    assert said in str(caught.value)
