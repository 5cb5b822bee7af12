"""One SPMD rank of the trainer: groups in, one optimizer step, diagnostics out. Knows nothing of Ray.

Data flow of a step:
    groups -> advantages per group -> samples with a gradient -> micro-batches under the token budget
    -> forward, log-probs of trained tokens, loss x correction x global token weights -> backward
    -> global gradient norm, AdamW.
Groups whose advantages are all zero cost no forward pass; they still count in the global means. A gradient that is
not finite changes nothing: the step is skipped and counted, the batch is used up.
With several ranks, only `_global_sum` and the gradient reduction know about it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from asyncrl.algorithms.advantages import ADVANTAGES
from asyncrl.algorithms.aggregation import token_weights
from asyncrl.algorithms.corrections import OffPolicySums, off_policy_sums, truncated_weights
from asyncrl.algorithms.logprobs import token_logprobs
from asyncrl.algorithms.losses import Loss
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.trajectory import Group
from asyncrl.trainer.packing import PackedBatch, TrainSample, pack, split


@dataclass(frozen=True)
class StepReport:
    """What one step did; times in seconds."""

    metrics: dict[str, float | None]
    tokens_trained: int
    """Tokens whose loss counted, zero-advantage groups included."""
    tokens_forward: int
    """Tokens that went through the model."""
    staleness: tuple[int, ...]
    """Age of every trained token at this step, as counts: staleness[a] tokens of age a."""


class Learner:
    """Holds the model, the optimizer and the random state of one rank."""

    def __init__(self, model: torch.nn.Module, recipe: Recipe, loss: Loss, device: torch.device) -> None:
        self.model = model
        self.recipe = recipe
        self.loss = loss
        self.device = device
        settings = dict(recipe.trainer.optimizer)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.trainer.learning_rate, fused=True, **settings)
        self.before_update: Callable[[], object] = lambda: None
        """Called right before weights and optimizer state change: who still copies them must finish first."""
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.trainer.precision == "bf16")

    def step(self, groups: list[Group], step: int, min_version: int) -> StepReport:
        """Train batch `step` with weights `step`; tokens sampled before `min_version` stay context only.

        Raises ValueError if a trained token is too old and the recipe does not mask such tokens (I1).
        """
        began = time.perf_counter()
        samples, ages, sequences = self._samples(groups, step, min_version)
        num_tokens, num_sequences = self._global_sum(sum(ages), sequences)
        off_policy = OffPolicySums()
        total_loss = 0.0
        self.model.train()
        self._zero_grad()
        trained = [s for s in samples if s.advantage != 0.0]
        num_forward = 0
        for micro in split(trained, self.recipe.trainer.tokens_per_microbatch):
            batch = pack(micro, self.device)
            num_forward += batch.tokens.numel()
            loss, sums = self._forward(batch, num_tokens, num_sequences)
            loss.backward()
            total_loss += float(loss.detach())
            off_policy += sums
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.trainer.max_grad_norm))
        skipped = not np.isfinite(grad_norm)
        if not skipped:
            self._optimizer_step(step)
        metrics = {
            **off_policy.metrics(),
            "trainer/loss": total_loss,
            "trainer/grad_norm": grad_norm,
            "trainer/learning_rate": self._learning_rate(step),
            "trainer/step_s": time.perf_counter() - began,
            "trainer/forward_tokens": float(num_forward),
            "trainer/skipped_zero_advantage": float(len(samples) - len(trained)),
            "trainer/skipped_steps": float(skipped),
        }
        return StepReport(metrics, sum(ages), num_forward, tuple(ages))

    def _samples(self, groups: list[Group], step: int, min_version: int) -> tuple[list[TrainSample], list[int], int]:
        """Samples with their advantage, token counts by age, and the number of trajectories with a trained token."""
        advantage_of = ADVANTAGES[self.recipe.algorithm.advantage]
        samples: list[TrainSample] = []
        ages = np.zeros(step - min_version + 1, dtype=np.int64)
        for group in groups:
            scored = [t for t in group.trajectories if t.reward is not None and t.loss_mask.any()]
            if not scored:
                continue
            rewards = torch.tensor([t.reward for t in scored], dtype=torch.float32)
            for trajectory, advantage in zip(scored, advantage_of(rewards).tolist(), strict=True):
                fresh = trajectory.versions >= min_version
                mask = trajectory.loss_mask & fresh
                if self.recipe.over_age != "mask" and mask.sum() != trajectory.loss_mask.sum():
                    oldest = int(trajectory.versions[trajectory.loss_mask].min())
                    raise ValueError(
                        f"task {group.task} has a token of version {oldest} in step {step}, which allows {min_version}"
                    )
                if mask.any():
                    ages += np.bincount(step - trajectory.versions[mask], minlength=len(ages))
                    samples.append(TrainSample(trajectory, advantage, mask))
        return samples, ages.tolist(), len(samples)

    def _forward(self, batch: PackedBatch, num_tokens: int, num_sequences: int) -> tuple[torch.Tensor, OffPolicySums]:
        logprobs = self.logprobs(batch)
        algorithm = self.recipe.algorithm
        # One optimizer step per batch: the weights at its start are the weights now.
        current = logprobs.detach()
        prox = current if algorithm.proximal == "recompute" else batch.behaviour_logprobs
        out = self.loss(
            logprobs,
            batch.behaviour_logprobs,
            prox,
            batch.advantages,
            torch.ones_like(batch.targets, dtype=torch.bool),
            clip_low=algorithm.clip_low,
            clip_high=algorithm.clip_high,
        )
        per_token, affected = out.per_token, out.clipped
        if algorithm.correction == "tis":
            weights = truncated_weights(prox, batch.behaviour_logprobs, algorithm.tis_cap)
            per_token = per_token * weights
            affected = affected | (weights >= algorithm.tis_cap)
        weights = token_weights(
            batch.segments,
            torch.bincount(batch.segments, minlength=len(batch.paths)),
            mode=algorithm.aggregation,
            num_tokens=num_tokens,
            num_sequences=num_sequences,
            constant_length=self.recipe.rollout.max_new_tokens,
        )
        return (per_token * weights).sum(), off_policy_sums(current, batch.behaviour_logprobs, affected)

    def logprobs(self, batch: PackedBatch) -> torch.Tensor:
        """log pi of the trained tokens at the sampling temperature, float32 [N]; logits only where needed."""
        with self.autocast:
            logits = self.model(
                input_ids=batch.tokens,
                position_ids=batch.positions,
                paths=batch.paths,
                slots=batch.slots,
                logits_to_keep=batch.predictors,
                use_cache=False,
            ).logits[0]
        return token_logprobs(logits, batch.targets, self.recipe.rollout.temperature)

    def _learning_rate(self, step: int) -> float:
        warmup = self.recipe.trainer.warmup_steps
        return self.recipe.trainer.learning_rate * min(1.0, (step + 1) / max(warmup, 1))

    def _zero_grad(self) -> None:
        # Zeros, not None: a step in which every group was skipped then decays momentum as a full pass would.
        for parameter in self.model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.zero_()

    def _optimizer_step(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        self.before_update()
        self.optimizer.step()

    def _global_sum(self, *counts: int) -> tuple[int, ...]:
        """Sum over ranks; the identity with one."""
        if not torch.distributed.is_initialized():
            return counts
        total = torch.tensor(counts, device=self.device)
        torch.distributed.all_reduce(total)
        return tuple(total.tolist())

    def state(self) -> dict[str, torch.Tensor]:
        """Master weights, optimizer state and random state, by name: the tensors themselves, not copies."""
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors["rng"] = torch.get_rng_state()
        return tensors

    def export(self, state: Mapping[str, torch.Tensor], folder: Path, dtype: torch.dtype) -> None:
        """Write the weights in `state` in `dtype` as a Hugging Face model that transformers and vLLM load."""
        # named_parameters gives tied weights once, as the file should hold them.
        weights = {n.removeprefix("model."): t.to(dtype) for n, t in state.items() if n.startswith("model.")}
        self.model.save_pretrained(folder, state_dict=weights)
        config = json.loads((folder / "config.json").read_text())
        config["dtype"] = str(dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config, indent=2))

    @torch.no_grad()
    def score(self, tokens: list[int]) -> list[float]:
        """log pi of tokens[1:] given what is before them, at temperature 1."""
        ids = torch.tensor(tokens, device=self.device)
        with self.autocast:
            logits = self.model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        return token_logprobs(logits, ids[1:], temperature=1.0).tolist()

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Inverse of `state`, bit for bit. Raises KeyError if it is of another model."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                state = {
                    key: tensors[f"optimizer.{key}.{name}"].clone()
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"optimizer.{key}.{name}" in tensors
                }
                if state:
                    self.optimizer.state[parameter] = {
                        k: v if k == "step" else v.to(self.device) for k, v in state.items()
                    }
        # A copy: torch reads it as aligned memory, which a view into a snapshot need not be.
        torch.set_rng_state(tensors["rng"].clone())
