"""Whether a model's rows may be prefix trees: tried once, when the model is loaded, by whether the result is right.

Both ways are computed in float64 (`exact.py`), where rounding is far below anything that is wrong: in fp32 a model may
blow it up to what a small mistake would be, on inputs that it never saw more than on others.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from asyncrl.algorithms.logprobs import Head
from asyncrl.errors import UserError
from asyncrl.trainer.attention import NAME, RowTree
from asyncrl.trainer.exact import exactly
from asyncrl.trainer.tree import prefix_tree

logger = logging.getLogger(__name__)

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Of log-probs, by what computed them. Rounding reaches 1e-12 in float64, and was seen to reach 2e-3 in fp32."""
_NUM_SHARED, _LENGTH = 6, 10


@torch.no_grad()
def choose_attention(model: Any, head: Head, path: str) -> None:
    """Let the model attend along prefix trees, if a small one gives what its sequences give one by one; else it keeps
    its own attention (layers that are no attention, soft-capped scores, ...) and a warning says why.

    Raises UserError if its logits are not what `head` makes of its hidden states.
    """
    sequences = _sequences(model)
    logits, from_hidden = _one_by_one(model, head, sequences)
    if not _close(from_hidden, logits):
        raise UserError(
            f"model: {path} ({model.config.model_type}) changes its logits in a way that is not known here; "
            "open an issue with the model's name"
        )
    usual = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    reason = _misfit(model, sequences, logits)
    if reason:
        model.set_attn_implementation(usual)
        logger.warning("%s is trained one trajectory at a time, which takes several times as long: %s", path, reason)


def ordinary_tokens(model: Any, number: int) -> np.ndarray:
    """From the middle of the vocabulary: no special ones."""
    size = model.config.get_text_config().vocab_size
    tokens: np.ndarray = (size // 2 + np.arange(number)) % size
    return tokens


def _sequences(model: Any) -> list[np.ndarray]:
    """Two that begin alike."""
    tokens = ordinary_tokens(model, 2 * _LENGTH - _NUM_SHARED)
    return [tokens[:_LENGTH], np.concatenate([tokens[:_NUM_SHARED], tokens[_LENGTH:]])]


def _one_by_one(model: Any, head: Head, sequences: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [M, L, V], and what the head makes of the decoder's outputs."""
    ids = torch.tensor(np.stack(sequences), device=model.device)
    hidden: list[torch.Tensor] = []

    def compute() -> tuple[torch.Tensor, torch.Tensor]:
        look = model.get_decoder().register_forward_hook(lambda *call: hidden.append(call[-1].last_hidden_state))
        try:
            return model(input_ids=ids, use_cache=False).logits, head.logits(hidden[-1])
        finally:
            look.remove()

    try:
        with exactly(model):
            return compute()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        # One of its kernels knows no float64.
        model.float()
        return compute()


def _misfit(model: Any, sequences: list[np.ndarray], expected: torch.Tensor) -> str | None:
    """Why rows of this model may not be trees, if they may not."""
    exact = expected.dtype == torch.float64
    try:
        with exactly(model) if exact else nullcontext():
            rows = together(model, sequences)
    except (TypeError, ValueError) as error:
        return str(error).splitlines()[0]
    if not all(_close(row, alone) for row, alone in zip(rows, expected, strict=True)):
        return "its outputs on a prefix tree are not those of the sequences one by one"
    return None


def together(model: Any, sequences: list[np.ndarray]) -> list[torch.Tensor]:
    """Logits [L, V] of each sequence, from a row that is their tree."""
    tree, device = prefix_tree(sequences), model.device
    row = RowTree(torch.tensor(tree.depths, device=device), torch.tensor(tree.ends, device=device), tree.nodes)
    row.prepare(model)
    ids = torch.tensor(tree.tokens, device=device)[None]
    logits = model(input_ids=ids, position_ids=row.depths[None], tree=row, use_cache=False).logits[0]
    return [logits[path] for path in tree.paths]


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    difference = ours.log_softmax(-1) - theirs.log_softmax(-1)
    return bool(difference.abs().max() < _TOLERANCE[ours.dtype])
