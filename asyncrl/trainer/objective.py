"""A recipe's objective on packed micro-batches: which parts of `algorithms/` it is made of, in which order.

rewards -> advantages          per group, before packing
        -> token advantages    critic, KL in the reward, normalisation, teacher: over the whole batch
log-probs now -> plan          what a mini-batch must know as a whole: M2PO's mask, log Z, pairs, covariances
        -> loss                loss x correction x staleness weight + KL, summed with global token weights
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asyncrl.algorithms import advantages, corrections, kl, losses, masks
from asyncrl.algorithms.aggregation import token_weights
from asyncrl.algorithms.base import Loss
from asyncrl.algorithms.offpolicy import OffPolicySums, off_policy_sums
from asyncrl.algorithms.segments import segment_sum
from asyncrl.algorithms.sequence import choose_pair, log_partition
from asyncrl.errors import UserError
from asyncrl.plugins import shown
from asyncrl.recipe.algorithm import AlgorithmRecipe
from asyncrl.registry import ADVANTAGES, CORRECTIONS, LOSSES, advantage_traits, find, loss_traits
from asyncrl.trainer.extras import Extras
from asyncrl.trainer.packing import PackedBatch, TrainSample

_COEFFICIENTS = ("clip_low", "clip_high", "dual_clip", "tis_cap", "mis_low", "mis_high", "tau", "beta", "delta")
_COLUMNS = ("ref_logprobs", "log_z", "partner", "side", "cov_band", "cov_top")
_GIVEN = ("segments", "num_segments", "rewards", *_COLUMNS)
"""To a loss, beside its five tensors."""


@dataclass(frozen=True)
class Counts:
    """Of the global mini-batch, trajectories without a gradient included."""

    num_tokens: int
    num_sequences: int
    """Rollouts."""


@dataclass(frozen=True)
class Terms:
    """What a micro-batch adds to its update."""

    loss: torch.Tensor
    """Its part of the loss, in which tokens that were left out still count below the line (`share_counted`)."""
    off_policy: OffPolicySums
    tokens_left_out: float
    sequences_left_out: float
    """Rollouts of which no token counts; of one with several trajectories their share of it."""
    preferred: tuple[float, float] = (0.0, 0.0)
    """Of pairs, seen from each of their trajectories: sum of beta (Delta(chosen) - Delta(rejected)), and how many of
    these are above 0."""


class Objective:
    """`constant_length`: tokens by which the aggregation `constant` divides. `base_dir`: from which functions of the
    user's own are looked up."""

    def __init__(self, recipe: AlgorithmRecipe, constant_length: int, base_dir: Path = Path()) -> None:
        self.recipe, self.constant_length = recipe, constant_length
        self.loss: Loss = find(LOSSES, recipe.loss, base_dir, "algorithm.loss")
        self.advantage = find(ADVANTAGES, recipe.advantage, base_dir, "algorithm.advantage")
        self.correction = None
        if recipe.correction != "none":
            self.correction = find(CORRECTIONS, recipe.correction, base_dir, "algorithm.correction")
        self.coefficients = {name: getattr(recipe, name) for name in _COEFFICIENTS} | recipe.loss_args
        self.loss_extras = Extras("algorithm.loss", recipe.loss, self.loss, 5, {*_GIVEN, *self.coefficients})
        self.advantage_extras = Extras("algorithm.advantage", recipe.advantage, self.advantage, 1)
        takes = inspect.signature(self.loss).parameters
        self.needs_reference = recipe.kl_coef > 0 or "ref_logprobs" in takes
        self.in_pairs = "partner" in takes
        """Only the best and the worst of a group are trained."""
        self.needs_sums = self.in_pairs or "log_z" in takes
        """The loss of a trajectory depends on those of its group."""
        self.needs_band, self.needs_top = "cov_band" in takes, "cov_top" in takes
        self.baseline = advantage_traits(recipe.advantage).baseline

    # -- what the learner must provide

    @property
    def skips_zero_advantage(self) -> bool:
        """Whether a trajectory of advantage 0 has no gradient, so that it need not pass the model."""
        r = self.recipe
        changed_later = r.normalise_advantages or r.advantage == "gae" or r.kl_coef > 0 or bool(r.teacher)
        # What is left out is not counted below the line either, so it must be known of every trajectory.
        return loss_traits(r.loss).linear and not changed_later and not self.leaves_out

    @property
    def leaves_out(self) -> bool:
        """Whether tokens may be left out of the batch, above and below the line, because of what the policy makes of
        them. M2PO's mask is no such: like a clip it takes a token's gradient, and the token still counts."""
        return self.recipe.entropy_quantile > 0 or self.recipe.reject_kl is not None

    @property
    def picks_members(self) -> bool:
        """Whether it trains only some members of a group, so that those not to be trained must not be among them."""
        return self.in_pairs or advantage_traits(self.recipe.advantage).picks

    @property
    def needs_prox(self) -> bool:
        """Whether the log-probs at the start of the step are needed before its first update."""
        return self.recipe.kl_coef > 0 and self.recipe.kl_in == "reward"

    @property
    def needs_plan(self) -> bool:
        r = self.recipe
        covariances = self.needs_band or self.needs_top
        return r.second_moment_limit is not None or r.entropy_quantile > 0 or self.needs_sums or covariances

    @property
    def sees_whole(self) -> bool:
        """Whether it must be given the values of all tokens at once, those of other ranks too."""
        return self.needs_plan or self.recipe.normalise_advantages

    # -- before the model runs

    def choose(
        self, rewards: torch.Tensor, extras: Sequence[Mapping[str, float]], baseline: float = 0.0
    ) -> tuple[list[int], torch.Tensor]:
        """Members of a group that are trained, and their advantages; rewards float32 [n], after all shaping. extras:
        what else each one's reward said. baseline: for an advantage that takes one off (`Baseline`)."""
        if self.in_pairs:
            pair = choose_pair(rewards)
            return (list(pair), torch.zeros(2)) if pair else ([], torch.zeros(0))
        given: dict[str, Any] = {} if self.baseline == "none" else {"baseline": baseline}
        result = self.advantage(rewards, **given, **self.advantage_extras.of(extras))
        if self.recipe.advantage not in ADVANTAGES:
            self._require_advantages(result, rewards)
        return list(range(len(rewards))), result

    def _require_advantages(self, result: Any, rewards: torch.Tensor) -> None:
        """Raises UserError for what a function of the user's own returned, if that is none."""
        fits = isinstance(result, torch.Tensor) and result.shape == rewards.shape and bool(result.isfinite().all())
        if not fits:
            raise UserError(
                f"algorithm.advantage '{self.recipe.advantage}' must return a tensor of {len(rewards)} finite numbers "
                f"for {len(rewards)} rewards, and returned {shown(result, repr):.200}"
            )

    def shape(self, rewards: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Rewards [n] less the punishment of overlong completions; lengths in tokens."""
        if not self.recipe.overlong_buffer:
            return rewards
        return rewards + advantages.overlong_penalty(lengths, self.constant_length, self.recipe.overlong_buffer)

    # -- once per batch, after the passes that need no gradient

    def token_advantages(self, batches: Sequence[PackedBatch]) -> None:
        """Set column `advantages` (and `returns`, with a critic) from the columns values, prox, reference, teacher."""
        r = self.recipe
        for batch in batches:
            result = batch.advantages
            if r.advantage == "gae":
                result, batch.columns["returns"] = advantages.gae(
                    batch.columns["values"],
                    batch.rewards,
                    batch.segments,
                    batch.num_trajectories,
                    r.gae_gamma,
                    r.gae_lambda,
                )
            if self.needs_prox:
                estimate = kl.kl_estimate(batch.columns["prox"], batch.columns["ref_logprobs"], r.kl_estimator)
                result = advantages.kl_in_reward(result, estimate, batch.segments, batch.num_trajectories, r.kl_coef)
            batch.columns["advantages"] = result
        if r.normalise_advantages and batches:
            every = torch.cat([b.columns["advantages"] for b in batches])
            normal = advantages.normalise(every, torch.ones_like(every, dtype=torch.bool))
            _spread(batches, "advantages", normal)
        # Last, so that the divergence keeps its unit, nats per token.
        for batch in batches if r.teacher and r.teacher_in == "advantage" else ():
            own, said = batch.columns["advantages"], batch.columns["teacher_logprobs"]
            batch.columns["advantages"] = advantages.less_divergence(
                own, batch.behaviour_logprobs, said, r.teacher_coef
            )

    # -- once per update

    def plan(
        self,
        batches: Sequence[PackedBatch],
        logprobs: Sequence[torch.Tensor],
        entropies: Sequence[torch.Tensor],
        step: int,
        progress: float,
    ) -> None:
        """Set the columns that depend on the mini-batch as a whole; logprobs and entropies as they are now. progress:
        share of the step's updates done."""
        r = self.recipe
        now = torch.cat(list(logprobs))
        groups = torch.cat([b.groups[b.segments] for b in batches])
        keep = torch.ones_like(now, dtype=torch.bool)
        counted = keep
        if r.second_moment_limit is not None:
            behaviour = torch.cat([b.behaviour_logprobs for b in batches])
            advantage = torch.cat([b.columns["advantages"] for b in batches])
            keep = masks.m2po_mask(now, behaviour, advantage, r.second_moment_limit)
        if r.entropy_quantile:
            entropy = torch.cat(list(entropies))
            counted = masks.entropy_mask(entropy, groups, int(groups.max()) + 1, r.entropy_quantile)
        _spread(batches, "keep", keep & counted)
        _spread(batches, "counted", counted)
        if self.needs_sums:
            self._plan_sequences(batches, logprobs)
        if self.needs_band or self.needs_top:
            prox = [self._prox(b, p, step, progress) for b, p in zip(batches, logprobs, strict=True)]
            self._plan_covariances(batches, now, torch.cat(prox), keep & counted)

    def _plan_covariances(
        self, batches: Sequence[PackedBatch], now: torch.Tensor, prox: torch.Tensor, keep: torch.Tensor
    ) -> None:
        """Which tokens take most of the entropy away; all of the mini-batch's, [N]."""
        r = self.recipe
        advantage = torch.cat([b.columns["advantages"] for b in batches])
        if self.needs_top:
            _spread(batches, "cov_top", masks.cov_top(now, advantage, keep, r.cov_share))
            return
        # Those that the clip stops anyway are not drawn.
        clipped = losses.ppo(now, prox, prox, advantage, keep, clip_low=r.clip_low, clip_high=r.clip_high).clipped
        free = keep & ~clipped
        _spread(batches, "cov_band", masks.cov_band(now, advantage, free, r.cov_share, r.cov_low, r.cov_high))

    def _plan_sequences(self, batches: Sequence[PackedBatch], logprobs: Sequence[torch.Tensor]) -> None:
        """log Z of each group, or each trajectory's partner in its pair; on every token."""
        sums = [segment_sum(p, b.segments, b.num_trajectories) for p, b in zip(logprobs, batches, strict=True)]
        refs = [segment_sum(b.columns["ref_logprobs"], b.segments, b.num_trajectories) for b in batches]
        now, ref = torch.cat(sums), torch.cat(refs)
        rewards, groups = torch.cat([b.rewards for b in batches]), torch.cat([b.groups for b in batches])
        columns = {name: torch.zeros_like(now) for name in ("log_z", "partner", "side")}
        for group in groups.unique():
            members = (groups == group).nonzero()[:, 0]
            if not self.in_pairs:
                columns["log_z"][members] = log_partition(
                    now[members], ref[members], rewards[members], self.recipe.beta
                )
                continue
            chosen, rejected = members[rewards[members].argsort(descending=True)]
            for one, other, side in ((chosen, rejected, 1.0), (rejected, chosen, -1.0)):
                columns["partner"][one] = now[other] - ref[other]
                columns["side"][one] = side
        for name, values in columns.items():
            for batch, part in zip(batches, values.split([b.num_trajectories for b in batches]), strict=True):
                batch.columns[name] = part[batch.segments]

    def __call__(self, batch: PackedBatch, logprobs: torch.Tensor, counts: Counts, step: int, progress: float) -> Terms:
        """What the micro-batch adds. progress: share of the step's updates done."""
        r, behaviour, columns = self.recipe, batch.behaviour_logprobs, batch.columns
        current = logprobs.detach()
        prox = self._prox(batch, current, step, progress)
        every = torch.ones_like(batch.targets, dtype=torch.bool)
        keep, counted = columns.get("keep", every), columns.get("counted", every)
        if r.reject_kl is not None:
            near = corrections.reject_by_kl(
                current, behaviour, batch.segments, batch.num_trajectories, every, r.reject_kl
            )
            keep, counted = keep & near, counted & near
        out = self.loss(
            logprobs,
            behaviour,
            prox,
            columns["advantages"],
            keep,
            segments=batch.segments,
            num_segments=batch.num_trajectories,
            rewards=batch.rewards[batch.segments],
            **{name: columns[name] for name in _COLUMNS if name in columns},
            **self._extras(batch),
            **self.coefficients,
        )
        per_token, affected = out.per_token, out.clipped
        if self.correction is not None:
            weights, cut = self._correction(batch, prox, keep)
            per_token, affected = per_token * weights, affected | cut
        if r.staleness_weight != "none":
            ages = step - batch.versions
            per_token = per_token * corrections.staleness_weights(ages, r.staleness_weight, r.staleness_exponent)
        if r.kl_coef and r.kl_in == "loss":
            estimate = kl.kl_estimate(logprobs, columns["ref_logprobs"], r.kl_estimator)
            per_token = per_token + r.kl_coef * torch.where(keep, estimate, 0.0)
        if r.teacher and r.teacher_in == "loss":
            said = columns["teacher_logprobs"]
            # Not zero times NaN: a gradient would have that too.
            estimate = kl.kl_estimate(logprobs, torch.where(said.isnan(), current, said), "k2")
            per_token = per_token + r.teacher_coef * torch.where(keep, estimate, 0.0)
        lengths = segment_sum(counted, batch.segments, batch.num_trajectories)
        weights = token_weights(
            batch.segments,
            lengths.clamp(min=1.0) / batch.shares,
            mode=r.aggregation,
            num_tokens=counts.num_tokens,
            num_sequences=counts.num_sequences,
            constant_length=self.constant_length,
        )
        same = _sampled_whole_by(step, batch) if progress == 0 else None
        # Each float() waits for a GPU.
        left_out = (float((~counted).sum()), float(batch.shares[lengths == 0].sum())) if self.leaves_out else (0.0, 0.0)
        return Terms(
            (per_token * weights).sum(),
            off_policy_sums(current, behaviour, affected, ~keep, same),
            *left_out,
            self._preferred(batch, current) if self.in_pairs else (0.0, 0.0),
        )

    def _preferred(self, batch: PackedBatch, current: torch.Tensor) -> tuple[float, float]:
        segments, columns = batch.segments, batch.columns
        delta = segment_sum(current - columns["ref_logprobs"], segments, batch.num_trajectories)
        margins = self.recipe.beta * columns["side"] * (delta[segments] - columns["partner"])
        # Each trajectory has its own on all of its tokens.
        tokens = segment_sum(torch.ones_like(margins), segments, batch.num_trajectories)[segments]
        return float((margins / tokens).sum()), float(((margins > 0) / tokens).sum())

    def share_counted(self, counts: Counts, tokens_left_out: float, sequences_left_out: float) -> float:
        """What the sum of all micro-batches' losses is to be divided by, so that the same rows are above and below
        the line; 1 if none is left. Both numbers are of the global mini-batch."""
        total, left_out = counts.num_sequences, sequences_left_out
        if self.recipe.aggregation == "token":
            total, left_out = counts.num_tokens, tokens_left_out
        return (total - left_out) / total if total > left_out else 1.0

    def _prox(self, batch: PackedBatch, current: torch.Tensor, step: int, progress: float) -> torch.Tensor:
        if self.recipe.proximal == "behaviour":
            return batch.behaviour_logprobs
        if self.recipe.proximal == "loglinear":
            return corrections.loglinear_prox(current, batch.behaviour_logprobs, batch.versions, step, step + progress)
        # Before the first update of a step, the weights at its start are the weights now.
        return batch.columns.get("prox", current)

    def _correction(
        self, batch: PackedBatch, prox: torch.Tensor, keep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and which tokens they cut; float32 and bool [N]."""
        r = self.recipe
        w = corrections.importance_weights(
            prox,
            batch.behaviour_logprobs,
            level=r.correction_level,
            segments=batch.segments,
            num_segments=batch.num_trajectories,
            mask=keep,
        )
        weights, cut = self.correction(w, **self.coefficients)
        return weights, cut

    def _extras(self, batch: PackedBatch) -> dict[str, torch.Tensor]:
        """Of each token those of its trajectory, float32 [N]."""
        found = self.loss_extras.of([sample.trajectory.extras for sample in batch.samples])
        return {name: values.to(batch.segments.device)[batch.segments] for name, values in found.items()}


def _sampled_whole_by(version: int, batch: PackedBatch) -> torch.Tensor:
    """Tokens of trajectories that this version sampled from their begin, bool [N]: those that it went on with may have
    read keys and values of the version before."""
    sampled = [versions[versions >= 0] for versions in (sample.trajectory.versions for sample in batch.samples)]
    whole = [bool((versions == version).all()) for versions in sampled]
    return torch.tensor(whole, dtype=torch.bool, device=batch.segments.device)[batch.segments]


def _spread(batches: Sequence[PackedBatch], name: str, values: torch.Tensor) -> None:
    """Cut the values of all trained tokens into a column of each micro-batch."""
    for batch, part in zip(batches, values.split([len(b.targets) for b in batches]), strict=True):
        batch.columns[name] = part


def minibatches(samples: list[TrainSample], number: int) -> list[list[TrainSample]]:
    """The samples in `number` parts of nearly equal numbers of groups; a group stays whole."""
    groups = sorted({s.group for s in samples})
    part_of = {group: i * number // len(groups) for i, group in enumerate(groups)}
    parts: list[list[TrainSample]] = [[] for _ in range(number)]
    for sample in samples:
        parts[part_of[sample.group]].append(sample)
    return parts
