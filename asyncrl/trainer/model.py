"""The trainer's model: fp32 master weights, the attention that follows a prefix tree where the model allows it, and
what is called: tokens in, log-probs or values of the trained ones out."""

from __future__ import annotations

import logging

import numpy as np
import torch

from asyncrl.algorithms.logprobs import Head, head_logprobs
from asyncrl.errors import UserError
from asyncrl.models import is_local
from asyncrl.recipe.schema import Recipe
from asyncrl.trainer.lora import inject
from asyncrl.trainer.packing import PackedBatch
from asyncrl.trainer.tree import prefix_tree

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3
"""Of log-probs in fp32, which two ways to compute them differ in by about 1e-5."""


def load_model(path: str, recipe: Recipe, device: torch.device) -> torch.nn.Module:
    """A transformers causal language model with fp32 master weights.

    Raises UserError if it is neither a local model nor one the hub can give, or if its logits are not understood.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=is_local(path))
    except (OSError, ValueError) as error:
        raise UserError(f"model: {path} could not be loaded: {str(error).splitlines()[0]}") from error
    model = model.to(device)
    _choose_attention(model, path)
    if recipe.trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if recipe.trainer.lora.rank:
        model = inject(model, recipe.trainer.lora)
    return model.to(device)


def takes_trees(model: torch.nn.Module) -> bool:
    """Whether a row may be a prefix tree; if not, it must be one trajectory."""
    from asyncrl.trainer.attention import NAME

    return model.config._attn_implementation == NAME


class Policy(torch.nn.Module):
    """A causal language model, called for log-probs. All use of its weights is within a call, as FSDP2 wants it."""

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        """dtype: of matrix products; the weights keep theirs."""
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, batch: PackedBatch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """log pi of the trained tokens at that temperature, and the entropies there; float32 [N] each."""
        hidden = _hidden(self.model, batch, self.dtype)
        return head_logprobs(head(self.model), hidden, batch.targets, temperature, self.dtype)


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
        hidden = _hidden(self.model, batch, self.dtype)
        values: torch.Tensor = self.model.get_output_embeddings()(hidden.float())[:, 0]
        return values


def _hidden(model: torch.nn.Module, batch: PackedBatch, dtype: torch.dtype) -> torch.Tensor:
    """The decoder's outputs [N, d] where a token is trained."""
    tree = {"tree": batch.tree} if takes_trees(model) else {}
    positions = batch.tree.depths[None]
    with torch.autocast(batch.tokens.device.type, dtype=dtype, enabled=dtype != torch.float32):
        outputs = model.get_decoder()(input_ids=batch.tokens, position_ids=positions, use_cache=False, **tree)
    return outputs.last_hidden_state[0].index_select(0, batch.predictors)


def head(model: torch.nn.Module) -> Head:
    """The output head, and what the model's family does to its logits."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    return Head(
        layer.weight,
        layer.bias,
        scale=getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0),
        cap=getattr(config, "final_logit_softcapping", None),
    )


@torch.no_grad()
def _choose_attention(model: torch.nn.Module, path: str) -> None:
    """Try a small tree against its sequences one by one, and keep the model's own attention if they differ (layers
    that are no attention, soft-capped scores, ...)."""
    from asyncrl.trainer.attention import NAME, RowTree

    device = model.device
    tokens = np.arange(3, 27) % model.config.get_text_config().vocab_size
    sequences = [tokens[:20], np.concatenate([tokens[:12], tokens[20:]])]
    alone = [model(input_ids=torch.tensor(s, device=device)[None], use_cache=False).logits[0] for s in sequences]
    tree = prefix_tree(sequences)
    row = RowTree(torch.tensor(tree.depths, device=device), torch.tensor(tree.ends, device=device), tree.nodes)
    inputs = {"input_ids": torch.tensor(sequences[0], device=device)[None], "use_cache": False}
    if not _close(head(model).logits(model.get_decoder()(**inputs).last_hidden_state[0]), alone[0]):
        raise UserError(
            f"model: {path} ({model.config.model_type}) changes its logits in a way that is not known here; "
            "open an issue with the model's name"
        )
    usual = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    inputs["input_ids"] = torch.tensor(tree.tokens, device=device)[None]
    try:
        together = model(**inputs, position_ids=row.depths[None], tree=row).logits[0]
        reason = "its outputs on a prefix tree are not those of the sequences one by one"
        fits = all(_close(together[p], a) for p, a in zip(tree.paths, alone, strict=True))
    except (TypeError, ValueError, RuntimeError) as error:
        fits, reason = False, str(error).splitlines()[0]
    if not fits:
        model.set_attn_implementation(usual)
        logger.warning("%s is trained one trajectory at a time: %s", path, reason)


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    difference = ours.float().log_softmax(-1) - theirs.float().log_softmax(-1)
    return bool(difference.abs().max() < _TOLERANCE)
