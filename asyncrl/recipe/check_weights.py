"""Whether the weights of a recipe can reach its engines by the transport that it names. Every fault is a UserError."""

from __future__ import annotations

from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe
from asyncrl.registry import TRANSPORTS


def check_weights(recipe: Recipe, holds_weights: bool) -> None:
    """Raises UserError for the first thing that would keep them from the engines. holds_weights: the engine does."""
    weights, name = recipe.weights, recipe.rollout.engine
    if holds_weights and weights.channel == "none":
        raise UserError(f"weights.channel none would never update engine {name}; set weights.channel=auto")
    if not holds_weights and weights.channel not in ("auto", "none"):
        raise UserError(f"weights.channel {weights.channel} needs weights, engine {name} holds none; set it to auto")
    if not holds_weights and weights.verify:
        raise UserError(f"weights.verify needs weights, engine {name} holds none; set weights.verify=false")
    transport = TRANSPORTS.get(weights.channel)
    if transport and transport.copies == "gpu" and recipe.trainer.lora.rank:
        raise UserError(
            f"weights.channel {weights.channel} cannot merge the adapters of trainer.lora; set weights.channel=auto"
        )
    if weights.rolling and not (transport and transport.rolling):
        fit = " or ".join(name for name, known in TRANSPORTS.items() if known.rolling)
        raise UserError(f"weights.rolling needs channel {fit}, not {weights.channel}")
    for key, num_gpus in (
        ("rollout.gpus_per_replica", recipe.rollout.gpus_per_replica),
        ("trainer.gpus_per_rank", recipe.trainer.gpus_per_rank),
    ):
        if weights.channel == "nccl" and num_gpus < 1:
            raise UserError(
                f"weights.channel nccl needs whole GPUs, but {key} is {num_gpus:g}; set {key}=1 or weights.channel=auto"
            )
    if weights.channel == "cuda_ipc" and not recipe.on_one_gpu:
        raise UserError(
            "weights.channel cuda_ipc is for one rank and its generators on one GPU: trainer.gpus_per_rank and "
            "rollout.replicas x rollout.gpus_per_replica must be shares of it, such as 0.6 and 0.4; or set "
            "weights.channel=auto"
        )
