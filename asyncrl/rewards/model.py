"""A reward model: a sequence classifier of `transformers`, in each reward process:

reward:
  - {fn: asyncrl.rewards.model:SequenceClassifier, kwargs: {model: Skywork/Skywork-Reward-V2-Qwen3-0.6B}}
"""

from __future__ import annotations

from typing import Any

from asyncrl.errors import UserError


class SequenceClassifier:
    """The score of prompt and completion, as one chat in the model's own template."""

    def __init__(
        self,
        model: str,
        label: int | None = None,
        max_tokens: int = 4096,
        revision: str | None = None,
        device: str = "cpu",
    ) -> None:
        """`model`: a folder or a hub name. `label`: which output is the reward, of a model that has several.
        `max_tokens`: of a chat; a longer one is a failure, as a score of its beginning would not be of it. `device`:
        torch's name of it; a GPU beside the engine's needs `rewards.placement.num_gpus`.

        Raises UserError for a model without a chat template, or with several outputs and no `label`.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.torch, self.max_tokens = torch, max_tokens
        self.tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
        found, loaded = AutoModelForSequenceClassification.from_pretrained(
            model, revision=revision, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
        if missing := sorted(loaded["missing_keys"]):
            raise UserError(
                f"reward model {model} lacks {missing[0]}, so its scores would be random; take a classifier"
            )
        if not self.tokenizer.chat_template:
            raise UserError(f"reward model {model} has no chat template; take one that was trained on chats")
        self.model, self.device = found.eval().to(device), device
        number = found.config.num_labels
        if number > 1 and label is None:
            raise UserError(
                f"reward model {model} has {number} outputs; say which is the reward, label=0 to {number - 1}"
            )
        if not 0 <= (label or 0) < number:
            raise UserError(
                f"reward model {model} has no output {label}, only 0 to {number - 1}; say one of them as label"
            )
        self.label = label or 0

    def __call__(self, prompt: Any, completion: str, **row: Any) -> float:
        """Raises ValueError for a chat that is too long."""
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        chat = [*before, {"role": "assistant", "content": completion}]
        tokens = self.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
        if len(tokens) > self.max_tokens:
            raise ValueError(f"the chat has {len(tokens)} tokens, more than max_tokens {self.max_tokens}")
        with self.torch.inference_mode():
            # One by one: without padding, which some models would look at.
            logits = self.model(input_ids=self.torch.tensor([tokens], device=self.device)).logits
        return float(logits[0, self.label])
