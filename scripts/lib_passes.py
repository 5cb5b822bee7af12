"""A training pass of two kinds over the same groups: packed as prefix trees, and padded to a rectangle."""

from __future__ import annotations

import numpy as np
import torch

from asyncrl.rollout.trajectory import Trajectory
from asyncrl.trainer.model import Policy
from asyncrl.trainer.packing import TrainSample, pack

PAD = 0


def trajectory(rng: np.random.Generator, prompt: np.ndarray, num_new: int, vocabulary: int = 40_000) -> Trajectory:
    tokens = np.concatenate([prompt, rng.integers(3, vocabulary, num_new)]).astype(np.int32)
    sampled = np.arange(len(tokens)) >= len(prompt)
    versions = np.where(sampled, 0, -1).astype(np.int32)
    return Trajectory(tokens, versions, np.zeros(len(tokens), np.float32), sampled, float(rng.random()), "stop")


def ours(policy: Policy, groups: list[list[Trajectory]]) -> float:
    """The loss, after its backward pass."""
    device = next(policy.parameters()).device
    samples = [TrainSample(t, i, t.reward, t.reward, t.loss_mask) for i, ts in enumerate(groups) for t in ts]
    batch = pack(samples, device)
    logprobs, _ = policy(batch, 1.0)
    loss = -(batch.advantages * logprobs).sum() / len(batch.targets)
    loss.backward()
    return loss.item()


def padded(model: torch.nn.Module, dtype: torch.dtype, groups: list[list[Trajectory]]) -> float:
    """The same with the model's own attention and whole logits over the completions."""
    flat = [t for group in groups for t in group]
    device = next(model.parameters()).device
    tokens = torch.full((len(flat), max(len(t.tokens) for t in flat)), PAD)
    trained = torch.zeros(tokens.shape, dtype=torch.bool)
    present = torch.zeros(tokens.shape, dtype=torch.long)
    for i, t in enumerate(flat):
        tokens[i, : len(t.tokens)] = torch.from_numpy(t.tokens)
        trained[i, : len(t.tokens)] = torch.from_numpy(t.loss_mask)
        present[i, : len(t.tokens)] = 1
    start = min(int(t.loss_mask.argmax()) for t in flat)
    keep = tokens.shape[1] - start + 1
    tokens, trained, present = tokens.to(device), trained.to(device), present.to(device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits = model(tokens, attention_mask=present, logits_to_keep=keep, use_cache=False).logits[:, :-1]
    targets = tokens[:, start:, None]
    logprobs = (logits.gather(-1, targets) - logits.logsumexp(-1, keepdim=True))[..., 0].float()
    rewards = torch.tensor([t.reward for t in flat], dtype=torch.float32, device=device)
    loss = -(rewards[:, None] * logprobs * trained[:, start:]).sum() / trained.sum()
    loss.backward()
    return loss.item()
