"""The trainer's model: the attention that follows a prefix tree where the model allows it, and what is called: tokens
in, log-probs or values of the trained ones out."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import torch

from asyncrl.algorithms.logprobs import Head, head_logprobs
from asyncrl.models import TINY_LLAMA, make_tiny_llama
from asyncrl.recipe.schema import Recipe
from asyncrl.trainer.fit import choose_attention
from asyncrl.trainer.loading import as_stored, outline, some
from asyncrl.trainer.lora import head_weight, inject, left_out, require_in_folder
from asyncrl.trainer.packing import PackedBatch
from asyncrl.trainer.precision import place

logger = logging.getLogger(__name__)


def load_model(path: str, recipe: Recipe, device: torch.device) -> torch.nn.Module:
    """A transformers causal language model with fp32 weights. One that several ranks are to divide stays on the host as
    it is stored, for `ProcessGroup.shard`: a device may have no room for the whole.

    Raises UserError if it is neither a local model nor one the hub can give, if its tensors are not the model's, or if
    its logits are not understood.
    """
    model, trainer = _without_dropout(as_stored(path)), recipe.trainer
    if trainer.ranks == 1 or trainer.lora.rank:
        place(model, device)
    choose_attention(model, head(model), path)
    if trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return inject(model, trainer.lora).to(device) if trainer.lora.rank else model


def _without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    """The sampler drops nothing, and its log-probs are what the trainer's are compared with."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return model


def trained_shapes(path: str, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """What would be trained of a model, adapters included, by name: known without loading it. Raises UserError for all
    that `load_model` does but for the logits, of teachers too."""
    for teacher in recipe.algorithm.teacher:
        if not teacher.url:
            outline(teacher.model)
    model, lora = outline(path), recipe.trainer.lora
    if _is_mixture(model):
        logger.warning(
            "%s is a mixture of experts: trainer and engine each choose a token's experts by themselves, and where "
            "rounding tips the choice their log-probs differ; offpolicy/logprob_gap_age0 says by how much",
            path,
        )
    if lora.rank:
        model = inject(model, lora)
        require_in_folder(model, path)
        if unadapted := left_out(model):
            logger.warning("trainer.lora: no linear layers, so without adapters, are %s", some(unadapted))
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}


def _is_mixture(model: torch.nn.Module) -> bool:
    config = model.config.get_text_config()
    return any(getattr(config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts"))


def takes_trees(model: torch.nn.Module) -> bool:
    """Whether a row may be a prefix tree; if not, it must be one trajectory."""
    from asyncrl.trainer.attention import NAME

    return model.config._attn_implementation == NAME


def would_take_trees(recipe: Recipe) -> bool:
    """Whether rows of the recipe's model may be prefix trees, tried on the CPU. UserError as `load_model`."""
    with tempfile.TemporaryDirectory() as folder:
        tiny = recipe.model == TINY_LLAMA
        path = str(make_tiny_llama(Path(folder), recipe.seed)) if tiny else recipe.model
        return takes_trees(load_model(path, recipe, torch.device("cpu")))


class Policy(torch.nn.Module):
    """A causal language model, called for log-probs. All use of its weights is within a call, as FSDP2 wants it."""

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        """dtype: of matrix products, and of the weights when it is called."""
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(
        self, batch: PackedBatch, temperature: float, width: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """log pi of the trained tokens at that temperature, and the entropies there; float32 [N] each. `width`: only so
        many tokens of the vocabulary there are, the first ones."""
        hidden = _hidden(self.model, batch)
        return head_logprobs(head(self.model).cut(width), hidden, batch.targets, temperature, self.dtype)


class Values(torch.nn.Module):
    """The same with one number per token for a head."""

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        """`model` becomes its own: its output head is replaced by one of width 1, zero at first."""
        super().__init__()
        old = model.get_output_embeddings()
        value = torch.nn.Linear(old.in_features, 1, bias=False, device=old.weight.device, dtype=torch.float32)
        torch.nn.init.zeros_(value.weight)
        model.set_output_embeddings(value)
        self.model, self.dtype = model, dtype

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Value before each trained token, float32 [N]."""
        weight = self.model.get_output_embeddings().weight[0]
        return _hidden(self.model, batch).float() @ weight.float()


def _hidden(model: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
    """The decoder's outputs [N, d] where a token is trained."""
    tree = {"tree": batch.tree.prepare(model)} if takes_trees(model) else {}
    positions = batch.tree.depths[None]
    outputs = model.get_decoder()(input_ids=batch.tokens, position_ids=positions, use_cache=False, **tree)
    return outputs.last_hidden_state[0].index_select(0, batch.predictors)


def head(model: torch.nn.Module) -> Head:
    """The output head, and what the model's family does to its logits."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    return Head(
        head_weight(model),
        layer.bias,
        scale=getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0),
        cap=getattr(config, "final_logit_softcapping", None),
    )
