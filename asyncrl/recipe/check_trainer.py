"""Whether the keys of a recipe's trainer go together. Every fault is a UserError."""

from __future__ import annotations

from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe
from asyncrl.registry import TRAINERS


def check_trainer(recipe: Recipe) -> None:
    """Raises UserError for the first thing that could not be trained so."""
    trainer = recipe.trainer
    if trainer.shard_ranks and trainer.ranks % trainer.shard_ranks:
        raise UserError(
            f"trainer.shard_ranks {trainer.shard_ranks} does not divide trainer.ranks {trainer.ranks}; "
            "set it to a divisor, or leave it out"
        )
    if trainer.ranks > 1 and recipe.checkpoint.snapshot_every_steps:
        raise UserError("checkpoint.snapshot_every_steps is for one rank; set it to 0, or trainer.ranks=1")
    longest = recipe.max_tokens
    if trainer.tokens_per_microbatch < longest:
        raise UserError(
            f"trainer.tokens_per_microbatch {trainer.tokens_per_microbatch} is below {recipe.max_context_key} = "
            f"{longest}, the longest trajectory; raise it, or lower one of those"
        )
    _check_schedule(recipe)
    if trainer.optimizer.offload and not trainer.gpus_per_rank:
        raise UserError(
            "trainer.optimizer.offload keeps the optimizer's states off a GPU, and trainer.gpus_per_rank is 0; "
            "leave it out"
        )
    if trainer.ema is not None and trainer.backend not in TRAINERS:
        raise UserError(
            f"trainer.ema is of trainer.backend fsdp, and {trainer.backend} keeps no running mean of the weights; "
            "leave it out"
        )
    if trainer.optimizer.name == "muon" and trainer.shard_ranks not in (None, trainer.ranks):
        raise UserError(
            f"trainer.optimizer.name muon would let the copies of trainer.shard_ranks {trainer.shard_ranks} drift "
            "apart; leave trainer.shard_ranks out, or set trainer.optimizer.name=adamw"
        )
    if trainer.optimizer.name == "muon" and trainer.lora.rank:
        raise UserError(
            "trainer.optimizer.name muon is for whole matrices, and trainer.lora trains factors of them; set "
            "trainer.optimizer.name=adamw, or trainer.lora.rank=0"
        )


def _check_schedule(recipe: Recipe) -> None:
    """Raises UserError for keys that would do nothing, or a schedule that has no room."""
    trainer = recipe.trainer
    if trainer.decay_steps and trainer.schedule != "wsd":
        raise UserError(
            f"trainer.decay_steps is for trainer.schedule wsd, not {trainer.schedule}; leave it out, or set "
            "trainer.schedule=wsd"
        )
    if trainer.schedule == "constant":
        if trainer.min_lr_ratio:
            raise UserError(
                "trainer.min_lr_ratio is where trainer.schedule falls to, and constant does not; leave it out, or "
                "choose another trainer.schedule"
            )
        return
    decay = trainer.num_decay_steps(recipe.max_steps) if trainer.schedule == "wsd" else 1
    if trainer.warmup_steps + decay > recipe.max_steps:
        raise UserError(
            f"trainer.schedule {trainer.schedule} has no room in max_steps {recipe.max_steps}: "
            f"trainer.warmup_steps takes {trainer.warmup_steps}, and its fall {decay} at least; lower "
            "trainer.warmup_steps or raise max_steps"
        )
