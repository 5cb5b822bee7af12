"""One SPMD rank of the trainer: groups in, optimizer steps, diagnostics out. Knows nothing of Ray.

Data flow of a step:
    groups -> rewards, advantages per group -> mini-batches of groups -> micro-batches under the token budget, packed
    -> passes without gradient, where the objective needs them: reference, critic, log-probs at the start of the step
    -> per epoch and mini-batch: forward, log-probs of trained tokens, objective -> backward -> global gradient
       norm, AdamW.
Trajectories that cannot have a gradient cost no forward pass; they still count in the global means. A gradient that
is not finite changes nothing: the update is skipped and counted, the batch is used up.
With several ranks, only `_global_sum` and the gradient reduction know about it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from asyncrl.algorithms.logprobs import head_logprobs
from asyncrl.algorithms.losses import Loss
from asyncrl.algorithms.offpolicy import OffPolicySums
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.trajectory import Group, Trajectory
from asyncrl.trainer.critic import Critic
from asyncrl.trainer.lora import base_weights, switched_off
from asyncrl.trainer.model import head, takes_trees
from asyncrl.trainer.objective import Counts, Objective, minibatches
from asyncrl.trainer.optimizer import Optimizer
from asyncrl.trainer.packing import PackedBatch, TrainSample, pack, split
from asyncrl.trainer.replay import Replay
from asyncrl.weights.lora import merge


@dataclass(frozen=True)
class StepReport:
    """What one step did; times in seconds."""

    metrics: dict[str, float | None]
    tokens_trained: int
    """Tokens whose loss counted, zero-advantage groups included."""
    tokens_forward: int
    """Tokens that went through the model with a gradient."""
    staleness: tuple[int, ...]
    """Age of every trained token at this step, as counts: staleness[a] tokens of age a."""


@dataclass(frozen=True)
class _Update:
    """One mini-batch, packed; and what it has when its groups without a gradient are counted too."""

    batches: list[PackedBatch]
    counts: Counts


@dataclass
class _Sums:
    """Over all updates of a step."""

    loss: float = 0.0
    value_loss: float = 0.0
    entropy: float = 0.0
    off_policy: OffPolicySums = field(default_factory=OffPolicySums)
    grad_norms: tuple[float, ...] = ()
    tokens_forward: int = 0
    tokens_with_gradient: int = 0


class Learner:
    """Holds the model, the optimizer and the random state of one rank, the reference and the critic if there are.

    `load` gives the initial model anew; a reference and a critic begin as that.
    """

    def __init__(self, load: Callable[[], torch.nn.Module], recipe: Recipe, loss: Loss, device: torch.device) -> None:
        self.model = load()
        self.packs = takes_trees(self.model)
        self.recipe = recipe
        self.device = device
        self.objective = Objective(recipe.algorithm, loss, recipe.rollout.max_new_tokens)
        trainer = recipe.trainer
        self.optimizer = Optimizer(self.model, trainer.learning_rate, trainer.optimizer, prefix="")
        self.reference: torch.nn.Module | None = None
        # With adapters the model without them is the reference, at no cost.
        self.adapted = trainer.lora.rank > 0
        if self.objective.needs_reference and not self.adapted:
            self.reference = load().to(getattr(torch, recipe.weights.dtype)).requires_grad_(False)
        algorithm = recipe.algorithm
        self.replay = Replay(algorithm.replay_share, algorithm.replay_capacity, recipe.seed)
        self.critic = Critic(load(), recipe, self._hidden) if algorithm.advantage == "gae" else None
        self.before_update: Callable[[], object] = lambda: None
        """Called right before weights and optimizer state change: who still copies them must finish first."""
        self.dtype = torch.bfloat16 if trainer.precision == "bf16" else torch.float32
        self.autocast = torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    # -- a step

    def step(self, groups: list[Group], step: int, min_version: int) -> StepReport:
        """Train batch `step` with weights `step`; tokens sampled before `min_version` stay context only.

        Raises ValueError if a trained token is too old and the recipe does not mask such tokens (I1).
        """
        began = time.perf_counter()
        samples, ages, past_ages = self._samples(groups, step, min_version)
        updates = self._updates(samples)
        self._prepare([batch for update in updates for batch in update.batches])
        sums = _Sums()
        epochs = self.recipe.trainer.epochs
        number = epochs * len(updates)
        for done in range(number):
            self._update(updates[done % len(updates)], step, done / number, sums)
        self._maybe_reset_reference(step)
        skipped = sum(not np.isfinite(norm) for norm in sums.grad_norms)
        trained = sum(b.num_trajectories for update in updates for b in update.batches)
        metrics = {
            **sums.off_policy.metrics(),
            **_compounded(ages, number),
            **_replayed(past_ages, len(samples)),
            "trainer/loss": sums.loss / number,
            "trainer/grad_norm": sums.grad_norms[-1],
            "trainer/entropy": sums.entropy / sums.tokens_with_gradient if sums.tokens_with_gradient else None,
            "trainer/learning_rate": self._learning_rate(step),
            "trainer/step_s": time.perf_counter() - began,
            "trainer/forward_tokens": float(sums.tokens_forward),
            "trainer/skipped_zero_advantage": float(len(samples) - trained),
            "trainer/skipped_steps": float(skipped),
        }
        if self.critic:
            metrics["trainer/value_loss"] = sums.value_loss / number
        return StepReport(metrics, sum(ages), sums.tokens_forward, tuple(ages))

    def _samples(
        self, groups: list[Group], step: int, min_version: int
    ) -> tuple[list[TrainSample], list[int], list[int]]:
        """Samples with their advantage: all trajectories that have a trained token; token counts by age of the new
        ones; age of each replayed one's oldest token."""
        samples: list[TrainSample] = []
        ages = np.zeros(step - min_version + 1, dtype=np.int64)
        past_ages: list[int] = []
        if self.recipe.algorithm.replay_share:
            groups, replayed = self.replay.mix(groups, step)
        else:
            replayed = [[False] * len(group.trajectories) for group in groups]
        for number, group in enumerate(groups):
            usable = [i for i, t in enumerate(group.trajectories) if t.reward is not None and t.loss_mask.any()]
            if not usable:
                continue
            scored = [group.trajectories[i] for i in usable]
            lengths = torch.tensor([int(t.loss_mask.sum()) for t in scored])
            rewards = self.objective.shape(torch.tensor([t.reward for t in scored], dtype=torch.float32), lengths)
            members, advantages = self.objective.choose(rewards)
            for i, advantage in zip(members, advantages.tolist(), strict=True):
                if replayed[number][usable[i]]:
                    mask = scored[i].loss_mask
                    past_ages.append(step - int(scored[i].versions[mask].min()))
                else:
                    mask = self._fresh(scored[i], group.task, step, min_version)
                    ages += np.bincount(step - scored[i].versions[mask], minlength=len(ages))
                if mask.any():
                    samples.append(TrainSample(scored[i], number, float(rewards[i]), advantage, mask))
        return samples, ages.tolist(), past_ages

    def _fresh(self, trajectory: Trajectory, task: int, step: int, min_version: int) -> np.ndarray:
        """Tokens to train, bool [T]."""
        mask: np.ndarray = trajectory.loss_mask & (trajectory.versions >= min_version)
        if self.recipe.over_age != "mask" and mask.sum() != trajectory.loss_mask.sum():
            oldest = int(trajectory.versions[trajectory.loss_mask].min())
            raise ValueError(f"task {task} has a token of version {oldest} in step {step}, which allows {min_version}")
        return mask

    def _updates(self, samples: list[TrainSample]) -> list[_Update]:
        updates = []
        for minibatch in minibatches(samples, self.recipe.trainer.minibatches):
            num_tokens, num_sequences = self._global_sum(sum(int(s.mask.sum()) for s in minibatch), len(minibatch))
            trained = [s for s in minibatch if s.advantage != 0.0 or not self.objective.skips_zero_advantage]
            budget = self.recipe.trainer.tokens_per_microbatch
            parts = split(trained, budget) if self.packs else [[sample] for sample in trained]
            batches = [pack(part, self.device) for part in parts]
            updates.append(_Update(batches, Counts(num_tokens, num_sequences)))
        return updates

    @torch.no_grad()
    def _prepare(self, batches: list[PackedBatch]) -> None:
        """The passes without gradient: what the objective compares with, as it is before the first update."""
        trainer = self.recipe.trainer
        several = trainer.epochs * trainer.minibatches > 1 and self.recipe.algorithm.proximal == "recompute"
        for batch in batches:
            if self.objective.needs_reference:
                batch.columns["ref_logprobs"] = self._reference_logprobs(batch)
            if self.critic is not None:
                batch.columns["values"] = self.critic.values(batch)
            if several or self.objective.needs_prox:
                batch.columns["prox"] = self._score(self.model, batch)[0]
        self.objective.token_advantages(batches)

    def _update(self, update: _Update, step: int, progress: float, sums: _Sums) -> None:
        """One optimizer step of the policy, and one of the critic."""
        self.model.train()
        self.optimizer.zero_grad()
        kept = self._plan(update.batches)
        for batch in update.batches:
            logprobs, entropies = kept or self._score(self.model, batch)
            loss, off_policy = self.objective(batch, logprobs, update.counts, step, progress)
            loss.backward()
            sums.loss += float(loss.detach())
            sums.entropy += float(entropies.sum())
            sums.off_policy += off_policy
            sums.tokens_forward += batch.tokens.numel()
            sums.tokens_with_gradient += len(batch.targets)
        norm = self.optimizer.clip(self.recipe.trainer.max_grad_norm)
        sums.grad_norms += (norm,)
        self.before_update()
        if np.isfinite(norm):
            self.optimizer.step(self._learning_rate(step))
        if self.critic:
            sums.value_loss += self.critic.update(update.batches)

    def _plan(self, batches: list[PackedBatch]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Let the objective see the mini-batch as a whole. With one micro-batch that pass serves the gradient too,
        and is returned."""
        if not self.objective.needs_plan or not batches:
            return None
        if len(batches) == 1:
            logprobs, entropies = self._score(self.model, batches[0])
            self.objective.plan(batches, [logprobs.detach()], [entropies])
            return logprobs, entropies
        with torch.no_grad():
            scored = [self._score(self.model, batch) for batch in batches]
        self.objective.plan(batches, [s[0] for s in scored], [s[1] for s in scored])
        return None

    def _hidden(self, model: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
        """The decoder's outputs [N, d] where a token is trained."""
        tree = {"tree": batch.tree} if self.packs else {}
        positions = batch.tree.depths[None]
        with self.autocast:
            outputs = model.get_decoder()(input_ids=batch.tokens, position_ids=positions, use_cache=False, **tree)
        return outputs.last_hidden_state[0].index_select(0, batch.predictors)

    def _score(self, model: torch.nn.Module, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """log pi of the trained tokens at the sampling temperature, and the entropies there; float32 [N] each."""
        hidden, temperature = self._hidden(model, batch), self.recipe.rollout.temperature
        return head_logprobs(head(model), hidden, batch.targets, temperature, self.dtype)

    def _reference_logprobs(self, batch: PackedBatch) -> torch.Tensor:
        if self.reference is not None:
            return self._score(self.reference, batch)[0]
        with switched_off(self.model):
            return self._score(self.model, batch)[0]

    def _learning_rate(self, step: int) -> float:
        warmup = self.recipe.trainer.warmup_steps
        return self.recipe.trainer.learning_rate * min(1.0, (step + 1) / max(warmup, 1))

    @torch.no_grad()
    def _maybe_reset_reference(self, step: int) -> None:
        every = self.recipe.algorithm.reference_reset_steps
        if self.reference is not None and every and (step + 1) % every == 0:
            for theirs, ours in zip(self.reference.parameters(), self.model.parameters(), strict=True):
                theirs.copy_(ours)

    def _global_sum(self, *counts: int) -> tuple[int, ...]:
        """Sum over ranks; the identity with one."""
        if not torch.distributed.is_initialized():
            return counts
        total = torch.tensor(counts, device=self.device)
        torch.distributed.all_reduce(total)
        return tuple(total.tolist())

    # -- state

    def state(self) -> dict[str, torch.Tensor]:
        """Master weights, optimizer state and random state, by name: the tensors themselves, not copies."""
        tensors = {**self.optimizer.state(), **self.replay.state(), "rng": torch.get_rng_state()}
        if self.critic:
            tensors.update(self.critic.optimizer.state())
        if self.reference is not None and self.recipe.algorithm.reference_reset_steps:
            tensors.update({f"reference.{name}": p for name, p in self.reference.named_parameters()})
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Inverse of `state`, bit for bit. Raises KeyError if it is of another model or objective."""
        self.optimizer.restore(tensors)
        self.replay.restore(tensors)
        if self.critic:
            self.critic.optimizer.restore(tensors)
        if self.reference is not None and self.recipe.algorithm.reference_reset_steps:
            for name, parameter in self.reference.named_parameters():
                parameter.copy_(tensors[f"reference.{name}"])
        # A copy: torch reads it as aligned memory, which a view into a snapshot need not be.
        torch.set_rng_state(tensors["rng"].clone())

    def export(self, state: Mapping[str, torch.Tensor], folder: Path, dtype: torch.dtype) -> None:
        """Write the weights in `state` in `dtype` as a Hugging Face model that transformers and vLLM load."""
        # named_parameters gives tied weights once, as the file should hold them.
        trained = {n.removeprefix("model."): t for n, t in state.items() if n.startswith("model.")}
        whole = merge(base_weights(self.model), trained, self.recipe.trainer.lora.scale) if self.adapted else trained
        weights = {name: tensor.to(dtype) for name, tensor in dict(whole).items()}
        self.model.save_pretrained(folder, state_dict=weights)
        config = json.loads((folder / "config.json").read_text())
        config["dtype"] = str(dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config, indent=2))

    @torch.no_grad()
    def score(self, tokens: list[int]) -> list[float]:
        """log pi of tokens[1:] given what is before them, at temperature 1."""
        ids = torch.tensor(tokens, device=self.device)
        with self.autocast:
            outputs = self.model.get_decoder()(input_ids=ids[None, :-1], use_cache=False)
        hidden = outputs.last_hidden_state[0]
        return head_logprobs(head(self.model), hidden, ids[1:], temperature=1.0, dtype=self.dtype)[0].tolist()


def _compounded(ages: list[int], number: int) -> dict[str, float | None]:
    """Staleness in optimizer steps, when a batch takes `number` of them: age x number + updates done before."""
    tokens = sum(ages)
    if not tokens:
        return dict.fromkeys(("staleness/updates_mean", "staleness/updates_max"))
    oldest = max(age for age, count in enumerate(ages) if count)
    mean = sum(age * count for age, count in enumerate(ages)) / tokens
    return {
        "staleness/updates_mean": mean * number + (number - 1) / 2,
        "staleness/updates_max": float(oldest * number + number - 1),
    }


def _replayed(past_ages: list[int], num_samples: int) -> dict[str, float | None]:
    """replay/*, for a step in which past trajectories were trained again; ages in updates."""
    if not past_ages:
        return {}
    return {
        "replay/share": len(past_ages) / num_samples,
        "replay/age_mean": sum(past_ages) / len(past_ages),
        "replay/age_max": float(max(past_ages)),
    }
