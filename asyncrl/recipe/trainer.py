"""What a recipe may say of its trainer: optimisation, adapters, precision."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat

from asyncrl.recipe.part import Gpus, NonNegativeInt, Part, PositiveInt, Processes

ADAMW = {"betas": [0.9, 0.95], "weight_decay": 0.0}


class LoraRecipe(Part):
    rank: NonNegativeInt = 0
    """Train adapters of this rank and send only them; 0 trains all weights."""
    alpha: PositiveFloat = 32.0
    """The adapters' product counts alpha/rank times."""
    targets: str | list[str] = "all-linear"
    """peft's `target_modules`: names of linear layers or embeddings such as q_proj or [q_proj, v_proj], a regular
    expression of whole names, or all linear layers but the output (fused experts and their routers are none)."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 0.0

    @property
    def names(self) -> list[str]:
        """The targets, unless they are `all-linear` or a regular expression."""
        if isinstance(self.targets, list):
            return self.targets
        return [self.targets] if re.fullmatch(r"[\w.]+", self.targets) else []


class TrainerRecipe(Part):
    ranks: Processes = 1
    """Trainer processes, which divide model and batch among them (FSDP2)."""
    shard_ranks: PositiveInt | None = None
    """So many ranks hold one copy of the model, and ranks/shard_ranks copies are kept in step (HSDP); default: all."""
    backend: str = "fsdp"
    """What trains: `fsdp`, or your own by `package.module:name` or `./file.py:name` (asyncrl.trainer.backend)."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1.0e-6
    """Constant after the warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly from 0."""
    epochs: PositiveInt = 1
    """Passes over each batch."""
    minibatches: PositiveInt = 1
    """Optimizer steps per pass; each takes its share of the groups. The staleness that this adds is reported."""
    critic_learning_rate: Annotated[float, Field(gt=0, le=1)] = 1.0e-5
    """Of the value model of `algorithm.advantage: gae`."""
    lora: LoraRecipe = LoraRecipe()
    """Low-rank adapters instead of all weights."""
    tokens_per_microbatch: PositiveInt = 4096
    """Upper limit of tokens in one forward pass; the longest trajectory must fit."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global L2 norm."""
    optimizer: Annotated[dict[str, Any], AfterValidator(lambda own: {**ADAMW, **own})] = ADAMW
    """Passed to torch.optim.AdamW untouched, over betas [0.9, 0.95] and weight_decay 0."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """bf16, fp16: weights and what goes between layers, over fp32 masters; fp16 with the loss scaled, so that gradients
    stay in its range. fp32: all in fp32 (exact, slow)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    gpus_per_rank: Annotated[Gpus, Field(le=1)] = 0
    """1 trains on a GPU, 0 on CPU, 0.6 on that share of a GPU and of its memory."""
    cpu_threads: PositiveInt | None = None
    """torch threads of a rank on CPU; default: its share of all cores, or of the half that CPU engines leave."""
