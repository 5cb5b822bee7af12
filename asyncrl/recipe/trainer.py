"""What a recipe may say of its trainer: optimisation, adapters, precision."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from asyncrl.recipe.part import Gpus, NonNegativeInt, Part, PositiveInt, Processes

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a running mean: what stays of it in a step."""


class OptimizerRecipe(Part):
    name: Literal["adamw", "muon"] = "adamw"
    """`muon`: the hidden matrices by Muon (Jordan et al. 2024), its updates as large as AdamW's, so that learning rates
    mean the same (arXiv:2502.16982, section 2.2); embeddings, the output head, norms, biases and fused experts by
    AdamW."""
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = [0.9, 0.95]
    """AdamW's."""
    eps: PositiveFloat = 1.0e-8
    """AdamW's."""
    weight_decay: NonNegativeFloat = 0.0
    """Matrices shrink by learning rate x this in each update; norms and biases do not."""
    momentum: Decay = 0.95
    """Muon's, with Nesterov's step."""
    offload: bool = False
    """Keep the running means (AdamW's two moments, Muon's momentum) in host memory, 8 bytes less on the GPU for each
    trained weight; the update is computed on the GPU, a parameter at a time. The weights come out the same."""


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
    """The highest, which follows the warm-up. All optimizer steps of a training step have one."""
    warmup_steps: NonNegativeInt = 0
    """Training steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    """After the warm-up: `linear` and `cosine` fall until the end of step max_steps; `wsd` (warm-up, stable, decay,
    arXiv:2404.06395) is constant, and falls linearly in the last `decay_steps`."""
    decay_steps: PositiveInt | None = None
    """Of `wsd`, in training steps; default: a tenth of max_steps."""
    min_lr_ratio: Share = 0.0
    """Share of `learning_rate` to which `schedule` falls."""
    epochs: PositiveInt = 1
    """Passes over each batch."""
    minibatches: PositiveInt = 1
    """Optimizer steps per pass; each takes its share of the groups. The staleness that this adds is reported."""
    critic_learning_rate: Annotated[float, Field(gt=0, le=1)] = 1.0e-5
    """Of the value model of `algorithm.advantage: gae`; it is constant."""
    lora: LoraRecipe = LoraRecipe()
    """Low-rank adapters instead of all weights."""
    tokens_per_microbatch: PositiveInt = 4096
    """Upper limit of tokens in one forward pass; the longest trajectory must fit."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global L2 norm."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a running mean of the weights over training steps, such as 0.99. It is exported beside the model of each
    checkpoint, as `model_ema`; nothing is sampled or evaluated with it. Of adapters it is that of A and that of B."""
    optimizer: OptimizerRecipe = OptimizerRecipe()
    """What makes an update of a gradient."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """bf16, fp16: weights and what goes between layers, over fp32 masters; fp16 with the loss scaled, so that gradients
    stay in its range. fp32: all in fp32 (exact, slow)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    gpus_per_rank: Annotated[Gpus, Field(le=1)] = 0
    """1 trains on a GPU, 0 on CPU, 0.6 on that share of a GPU and of its memory."""
    cpu_threads: PositiveInt | None = None
    """torch threads of a rank on CPU; default: its share of all cores, or of the half that CPU engines leave."""

    def num_decay_steps(self, max_steps: int) -> int:
        """Of `wsd`."""
        return self.decay_steps or math.ceil(max_steps / 10)
