"""One SPMD rank of the trainer: groups in, optimizer steps, diagnostics out. Knows nothing of Ray.

Data flow of a step:
    groups -> rewards, advantages per group -> mini-batches of groups -> micro-batches under the token budget, packed
    -> no-grad forwards, where the objective needs them: reference, teachers, critic, log-probs at the step's start
    -> per epoch and mini-batch: forward, log-probs of trained tokens, objective -> backward -> global gradient
       norm, optimizer.
Trajectories that cannot have a gradient cost no forward pass; they still count in the global means. A gradient that
is not finite changes nothing: the update is skipped and counted, the batch is used up.
With several ranks each does all this for all groups, but for the passes, of which it makes its share (`balance.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from asyncrl.observe.trace import span
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.trajectory import Group
from asyncrl.trainer.attention import use_flash
from asyncrl.trainer.backend import StepReport
from asyncrl.trainer.baseline import Baseline
from asyncrl.trainer.comparison import require_same
from asyncrl.trainer.compiled import compile_layers, warm_up
from asyncrl.trainer.critic import Critic
from asyncrl.trainer.ema import Ema
from asyncrl.trainer.export import names_of, write_model
from asyncrl.trainer.gaps import Gaps, sampled
from asyncrl.trainer.lora import adapters, merged, switched_off
from asyncrl.trainer.model import Policy, Values, takes_trees
from asyncrl.trainer.objective import Counts, Objective, minibatches
from asyncrl.trainer.optimizer import Optimizer
from asyncrl.trainer.packing import PackedBatch, TrainSample, pack_text
from asyncrl.trainer.precision import TYPES, hold
from asyncrl.trainer.ranks import ProcessGroup
from asyncrl.trainer.replay import Replay
from asyncrl.trainer.samples import choose
from asyncrl.trainer.schedule import learning_rate
from asyncrl.trainer.sft import RowsOf, SftTerm, samples_of
from asyncrl.trainer.sharding import fill, held, weight_shards
from asyncrl.trainer.step_report import Sums, compounded, demonstrated, distilled, learnt, replayed
from asyncrl.trainer.teachers import Teachers, load_teacher
from asyncrl.trainer.updates import Packer, Update
from asyncrl.weights.shards import Held

Called = TypeVar("Called", Policy, Values)


class Learner:
    """Holds the model, the optimizer and the random state of one rank, the reference, the teachers and the critic if
    there are.

    `load` gives the initial model anew; a reference and a critic begin as that. `look` is shown it while it
    is whole. `rows_of` gives the demonstrations of `algorithm.sft`.
    """

    def __init__(
        self,
        load: Callable[[], torch.nn.Module],
        recipe: Recipe,
        device: torch.device,
        process_group: ProcessGroup | None = None,
        look: Callable[[torch.nn.Module], object] = lambda model: None,
        base_dir: Path = Path(),
        rows_of: RowsOf | None = None,
    ) -> None:
        self.recipe, self.device = recipe, device
        self.process_group = process_group or ProcessGroup(device)
        self.dtype = TYPES[recipe.trainer.precision]
        self.model = load()
        look(self.model)
        self._names = names_of(self.model)
        self.packs = takes_trees(self.model)
        self.kernels = ""
        """Which ones a GPU takes, for people."""
        self.policy = self._called(Policy, self.model)
        self.objective = Objective(recipe.algorithm, recipe.max_sampled_tokens, base_dir)
        trainer = recipe.trainer
        self.optimizer = Optimizer(self.model, trainer.learning_rate, trainer.optimizer, "", self.dtype)
        self.ema = Ema(self.optimizer.named, trainer.ema) if trainer.ema is not None else None
        self.reference: Policy | None = None
        # With adapters the model without them is the reference, at no cost.
        self.adapted = trainer.lora.rank > 0
        if self.objective.needs_reference and not self.adapted:
            # What an engine holds; without one the policy is its own reference, to the last bit.
            sent: torch.dtype = torch.float32 if recipe.from_data else getattr(torch, recipe.weights.dtype)
            frozen = load().to(sent if self.dtype == torch.float32 else self.dtype).requires_grad_(False)
            self.reference = self._called(Policy, frozen)
        algorithm = recipe.algorithm
        self.teachers: Teachers | None = None
        if algorithm.teacher:
            several = self.process_group.size > 1
            one = partial(load_teacher, recipe=recipe, device=device, base_dir=base_dir)
            self.teachers = Teachers(algorithm.teacher, one, self._frozen, self.model, ask_all=several)
        self.replay = Replay(algorithm.replay_share, algorithm.replay_capacity, recipe.seed)
        self.baseline = Baseline(self.objective.baseline, algorithm.rho)
        self.sft: SftTerm | None = None
        if algorithm.sft is not None:
            assert rows_of is not None
            self.sft = SftTerm(algorithm.sft.coef, rows_of, self.process_group)
        self.critic: Critic | None = None
        if algorithm.advantage == "gae":
            values = self._called(Values, load())
            self.critic = Critic(values, recipe, self.process_group)
        if self.kernels:
            self.optimizer.zero_grad()
            warm_up(self.policy, device, trainer.tokens_per_microbatch)
        self.before_update: Callable[[], object] = lambda: None
        """Called right before weights and optimizer state change: who still copies them must finish first."""
        self.adapters = adapters(self.model, trainer.lora) if self.adapted else None
        self.sync_group = self.process_group.sync_group

    def _called(self, kind: type[Called], model: torch.nn.Module) -> Called:
        """The model as it is called: sharded over the ranks, in the type of the products."""
        called = kind(model, self.dtype)
        if self.packs and self.device.type == "cuda":
            attention = "FlashAttention 4" if use_flash(self.device) else "FlexAttention's Triton kernels"
            self.kernels = f"attention by {attention}, layers {'' if compile_layers(model) else 'not '}compiled"
        self.process_group.shard(called, model, self.recipe.trainer)
        hold(model, self.dtype)
        return called

    def _frozen(self, model: torch.nn.Module) -> Policy:
        return self._called(Policy, model if self.dtype == torch.float32 else model.to(self.dtype))

    # -- a step

    def step(self, groups: list[Group], step: int, min_version: int) -> StepReport:
        """Train batch `step` with weights `step`; tokens sampled before `min_version` stay context only.

        Raises ValueError if a trained token is too old and the recipe does not mask such tokens (I1).
        """
        began = time.perf_counter()
        with span("pack"):
            mask_old = self.recipe.on_stale == "mask"
            chosen = choose(groups, self.objective, self.replay, self.baseline, step, min_version, mask_old=mask_old)
            samples, ages = chosen.samples, chosen.ages
            rows = self.sft.rows_of(step) if self.sft else []
            updates = self._updates(samples, samples_of(rows, step))
        with span("no-grad forwards"):
            self._prepare(updates)
        sums, norms, gaps = Sums(), [], Gaps(sampled(groups))
        epochs = self.recipe.trainer.epochs
        number = epochs * len(updates)
        for done in range(number):
            norms.append(self._update(updates[done % len(updates)], step, done / number, sums, gaps))
        self._maybe_reset_reference(step)
        if self.ema:
            self.ema.update()
        sums = sums.over(self.process_group)
        with_gradient = sums.tokens_with_gradient
        metrics = {
            **sums.off_policy.metrics(),
            **compounded(ages, number),
            **replayed(chosen.past_ages, len(samples)),
            **learnt(sums, self.recipe.algorithm.loss, self.objective.in_pairs),
            **distilled(sums, self.teachers is not None),
            **demonstrated(sums, len(rows) if self.sft else None),
            "trainer/loss": sums.loss / number,
            "trainer/grad_norm": norms[-1],
            "trainer/entropy": sums.entropy / with_gradient if with_gradient else None,
            "trainer/learning_rate": learning_rate(self.recipe, step),
            "trainer/step_s": time.perf_counter() - began,
            "trainer/forward_tokens": sums.tokens_forward,
            "trainer/trajectory_tokens": sums.tokens_of_trajectories,
            "trainer/prefix_trees": float(self.packs),
            "trainer/skipped_zero_advantage": float(len(samples) - sum(u.num_trained for u in updates)),
            "trainer/skipped_steps": float(sum(not np.isfinite(norm) for norm in norms)),
        }
        if self.recipe.algorithm.mask_truncated:
            metrics["trainer/masked_truncated"] = float(chosen.num_left_out)
        if self.critic:
            metrics["trainer/value_loss"] = sums.value_loss / number
        return StepReport(metrics, sum(ages), int(sums.tokens_forward), tuple(ages), gaps.found)

    @property
    def packer(self) -> Packer:
        width = self.model.config.get_text_config().hidden_size if self.packs else None
        return Packer(self.process_group, self.device, width, self.recipe.trainer.tokens_per_microbatch)

    def _updates(self, samples: list[TrainSample], rows: Sequence[TrainSample] = ()) -> list[Update]:
        """`rows`: demonstrations, of which each update has its share."""
        updates, number, packer = [], self.recipe.trainer.minibatches, self.packer
        shares_of_rows = minibatches([*rows], number)
        for minibatch, share in zip(minibatches(samples, number), shares_of_rows, strict=True):
            trained = [s for s in minibatch if s.advantage != 0.0 or not self.objective.skips_zero_advantage]
            passes = packer.passes(trained)
            everyone, sizes = passes.batches, [sum(len(b.targets) for b in passes.batches)]
            if self.process_group.size > 1 and self.objective.sees_whole:
                packed = packer.everyone(passes)
                everyone = [batch for batches in packed for batch in batches]
                sizes = [sum(len(b.targets) for b in batches) for batches in packed]
            counts = Counts(sum(int(s.mask.sum()) for s in minibatch), round(sum(s.share for s in minibatch)))
            own = passes.batches, passes.idle
            updates.append(Update(*own, everyone, sizes, len(trained), counts, packer.rows([*share])))
        return updates

    @torch.no_grad()
    def _prepare(self, updates: list[Update]) -> None:
        """The no-grad forwards: what the objective compares with, as it is before the first update."""
        trainer, columns = self.recipe.trainer, {}
        if self.objective.needs_reference:
            columns["ref_logprobs"] = self._reference_logprobs
        if self.teachers is not None:
            columns["teacher_logprobs"] = partial(self.teachers.logprobs, temperature=self.recipe.rollout.temperature)
        if self.critic is not None:
            columns["values"] = self.critic.values
        several = trainer.epochs * trainer.minibatches > 1 and self.recipe.algorithm.proximal == "recompute"
        if several or self.objective.needs_prox:
            columns["prox"] = lambda batch: self._score(batch)[0]
        for update in updates:
            for name, compute in columns.items():
                own = [compute(batch) for batch in update.batches]
                for batch in update.idle:
                    compute(batch)
                for batch, values in zip(update.everyone, self._of_everyone(update, own), strict=True):
                    batch.columns[name] = values
        self.objective.token_advantages([batch for update in updates for batch in update.everyone])

    def _of_everyone(self, update: Update, own: list[torch.Tensor]) -> list[torch.Tensor]:
        """Values of trained tokens, for all micro-batches in `everyone`, from each rank's for its own."""
        if len(update.sizes) == 1:
            return own
        flat = torch.cat(own) if own else torch.zeros(0, device=self.device)
        whole = torch.cat(self.process_group.exchange(flat, update.sizes))
        return list(whole.split([len(batch.targets) for batch in update.everyone]))

    def _update(self, update: Update, step: int, progress: float, sums: Sums, gaps: Gaps) -> float:
        """One optimizer step of the policy, and one of the critic; the gradient's norm before it was clipped."""
        self.policy.train()
        self.optimizer.zero_grad()
        kept = self._plan(update, step, progress)
        loss, left_out = 0.0, [0.0, 0.0]
        for batch in update.batches:
            with span("forward"):
                logprobs, entropies = kept or self._score(batch)
                terms = self.objective(batch, logprobs, update.counts, step, progress)
            with span("backward"):
                self.process_group.backward(self.optimizer.scaled(terms.loss))
            loss += float(terms.loss.detach())
            left_out = [left_out[0] + terms.tokens_left_out, left_out[1] + terms.sequences_left_out]
            sums.entropy += float(entropies.sum())
            sums.off_policy += terms.off_policy
            sums.nll -= float(logprobs.detach().sum())
            sums.margin, sums.preferred = sums.margin + terms.preferred[0], sums.preferred + terms.preferred[1]
            sums.trajectories += batch.num_trajectories
            sums.taught(batch)
            gaps.look(batch, logprobs)
            sums.tokens_forward += batch.tokens.numel()
            sums.tokens_of_trajectories += sum(len(s.trajectory.tokens) for s in batch.samples)
            sums.tokens_with_gradient += len(batch.targets)
        for batch in update.idle:
            self.process_group.backward(0.0 * (kept or self._score(batch))[0].sum())
        if self.objective.leaves_out:
            share = self.objective.share_counted(update.counts, *self.process_group.sum(left_out))
            loss /= share
            self.optimizer.divide_gradients(share)
        if self.sft and update.rows:
            loss += self.sft.backward(update.rows, self.policy, self.optimizer, sums)
        sums.loss += loss
        with span("optimizer"):
            norm = self.optimizer.clip(self.recipe.trainer.max_grad_norm)
        self.before_update()
        with span("optimizer"):
            if np.isfinite(norm):
                self.optimizer.step(learning_rate(self.recipe, step))
            else:
                self.optimizer.skip()
        if self.critic:
            sums.value_loss += self.critic.update(update.batches, update.idle)
        return norm

    def _plan(self, update: Update, step: int, progress: float) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Let the objective see the mini-batch as a whole. With one micro-batch that pass serves the gradient too,
        and is returned."""
        if not self.objective.needs_plan or not update.num_passes:
            return None
        kept = update.num_passes == 1
        with torch.set_grad_enabled(kept):
            scored = [self._score(batch) for batch in (*update.batches, *update.idle)]
        own = scored[: len(update.batches)]
        logprobs = self._of_everyone(update, [s[0].detach() for s in own])
        entropies = self._of_everyone(update, [s[1] for s in own])
        self.objective.plan(update.everyone, logprobs, entropies, step, progress)
        return scored[0] if kept else None

    def _score(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """log pi of the trained tokens at the sampling temperature, and the entropies there; float32 [N] each."""
        result: tuple[torch.Tensor, torch.Tensor] = self.policy(batch, self.recipe.rollout.temperature)
        return result

    def _reference_logprobs(self, batch: PackedBatch) -> torch.Tensor:
        if self.reference is not None:
            return self.reference(batch, self.recipe.rollout.temperature)[0]
        with switched_off(self.model):
            return self._score(batch)[0]

    @torch.no_grad()
    def _maybe_reset_reference(self, step: int) -> None:
        every = self.recipe.algorithm.reference_reset_steps
        if self.reference is not None and every and (step + 1) % every == 0:
            for theirs, ours in zip(self.reference.model.parameters(), self.model.parameters(), strict=True):
                theirs.copy_(ours)

    # -- state

    def weight_shards(self) -> list[Held]:
        """Of the tensors that are the model's own for good: FSDP2 shows others in their place while it computes."""
        return weight_shards(self.model)

    def state(self) -> dict[str, torch.Tensor]:
        """Master weights, optimizer state and random state, by name: the tensors themselves, not copies."""
        tensors = self.optimizer.state()
        if self.process_group.rank == 0:
            tensors |= {**self.replay.state(), **self.baseline.state(), "rng": torch.get_rng_state()}
        if self.ema:
            tensors.update(self.ema.state())
        if self.critic:
            tensors.update(self.critic.optimizer.state())
        if self.reference is not None and self.recipe.algorithm.reference_reset_steps:
            for name, parameter in self.reference.model.named_parameters():
                tensors |= held(f"reference.{name}", parameter)
        return tensors

    def restore(self, tensors: Mapping[str, Any]) -> None:
        """Inverse of `state`, bit for bit, from whole tensors or `checkpoint.files.Saved`. Raises KeyError if it is of
        another model or objective."""
        self.optimizer.restore(tensors)
        if self.ema:
            self.ema.restore(tensors)
        self.replay.restore(tensors)
        self.baseline.restore(tensors)
        if self.critic:
            self.critic.optimizer.restore(tensors)
        # One that was never reset is not saved: it is the initial model.
        if self.reference is not None and any(name.startswith("reference.") for name in tensors):
            for name, parameter in self.reference.model.named_parameters():
                fill(parameter, tensors[f"reference.{name}"])
        # A copy: torch reads it as aligned memory, which a view into a snapshot need not be.
        torch.set_rng_state(tensors["rng"].clone())

    def export(self, state: Mapping[str, Any], folder: Path, dtype: torch.dtype) -> None:
        """Write the weights in `state` in `dtype` as a Hugging Face model that transformers and vLLM load."""
        write_model(self.model, self.whole(state), self._names, folder, dtype)

    def whole(self, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The model's weights of a `state` of whole tensors, by name, adapters merged."""
        trained = {n.removeprefix("model."): t[...] for n, t in state.items() if n.startswith("model.")}
        return merged(self.model, trained, self.recipe.trainer.lora)

    def compare_export(
        self, state: Mapping[str, Any], folder: Path, expected: list[float], text: list[int], dtype: torch.dtype
    ) -> None:
        rounded_to = max(self.dtype, dtype, key=lambda d: torch.finfo(d).eps)
        require_same(self.model, self.whole(state), folder, expected, text, dtype, rounded_to)

    @torch.no_grad()
    def score(self, tokens: list[int]) -> list[float]:
        """log pi of tokens[1:] given what is before them, at temperature 1."""
        batch = pack_text(np.array(tokens), self.device)
        was_training = self.policy.training
        self.policy.eval()  # dropout would be neither the model's answer nor leave the random state alone
        logprobs: torch.Tensor = self.policy(batch, temperature=1.0)[0]
        self.policy.train(was_training)
        return logprobs.tolist()
