"""What a plan must know of a model: the sizes in its config.json, and what follows from them. Loads no library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asyncrl.errors import UserError

_QKV_BIAS = ("qwen2",)
"""Families whose query, key and value projections have a bias whatever the config says."""
_QK_NORM = ("qwen3", "qwen3_moe")
FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder of equal layers: attention with grouped keys and values, and a gated feed-forward block."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Of one expert, if there are experts."""
    vocabulary: int
    tied: bool
    """The output head is the embedding."""
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    mlp_bias: bool = False
    experts: int = 0
    active_experts: int = 0
    """That each token passes."""

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, which are as many as the head's."""
        return self.vocabulary * self.hidden

    @property
    def layer_parameters(self) -> int:
        return self._layer(self.experts)

    @property
    def parameters(self) -> int:
        """Of the whole model, tied ones once."""
        return (1 if self.tied else 2) * self.embedding + self.layers * self.layer_parameters + self.hidden

    @property
    def active_body(self) -> int:
        """Weights of the layers that one token is multiplied with."""
        return self.layers * self._layer(self.active_experts)

    @property
    def linear_widths(self) -> int:
        """Inputs and outputs of a layer's linear maps, summed: an adapter of rank r has r of each."""
        attention = 2 * (self.hidden + self.queries) + 2 * (self.hidden + self.keys)
        return attention + 3 * (self.hidden + self.intermediate) * max(1, self.experts)

    def _layer(self, experts: int) -> int:
        attention = 2 * self.hidden * (self.queries + self.keys)
        attention += self.qkv_bias * (self.queries + 2 * self.keys) + self.output_bias * self.hidden
        mlp = 3 * self.hidden * self.intermediate + self.mlp_bias * (2 * self.intermediate + self.hidden)
        if self.experts:
            mlp = experts * mlp + self.experts * self.hidden
        return attention + mlp + 2 * self.hidden + self.qk_norm * 2 * self.head_dim

    @classmethod
    def of_config(cls, config: Mapping[str, Any], model: str) -> Shape:
        """Of a config.json. Raises UserError if the family is not known here, or a size is missing."""
        family = config.get("model_type", "")
        if family not in FAMILIES:
            raise UserError(
                f"model {model} is of type '{family}', whose size a plan does not know; it knows {', '.join(FAMILIES)}"
            )
        try:
            return cls._of_known(config, family)
        except KeyError as error:
            raise UserError(f"model {model}: its config.json lacks {error}, which a plan needs") from error

    @classmethod
    def _of_known(cls, config: Mapping[str, Any], family: str) -> Shape:
        heads, bias = config["num_attention_heads"], bool(config.get("attention_bias", False))
        mixture = family in ("mixtral", "qwen3_moe")
        experts = (config.get("num_experts") or config["num_local_experts"]) if mixture else 0
        return cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=config["moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=bias or family in _QKV_BIAS,
            output_bias=bias,
            qk_norm=family in _QK_NORM,
            mlp_bias=bool(config.get("mlp_bias", False)),
            experts=experts,
            active_experts=config["num_experts_per_tok"] if mixture else 0,
        )
