"""`scripts/check_stamps`: were the tokens of a run sampled with the weights that their stamps name (I3)?

    journal --trajectories--> log-probs by the weights of their versions <--compared, token by token--> the engine's

A token's log-prob depends on its weights and on the KV cache before it, and both are told exactly: each span goes on
from the cache that the spans before left, or, if the request was read again, from one of its own weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asyncrl.buffer.records import groups
from asyncrl.errors import UserError
from asyncrl.models import TINY_LLAMA
from asyncrl.recipe.load import load
from asyncrl.recipe.schema import Recipe
from asyncrl.report.samples import spread
from asyncrl.rollout.trajectory import Group, Trajectory, decode
from asyncrl.storage import atomic
from asyncrl.terminal.progress import shown

_ROUNDING = 8.0
"""A gap of so many times the rounding of a token is none. In fp32 at most 2 were seen between vLLM and transformers."""
_SAMPLE = 64
"""Trajectories that the rounding is measured on."""
_MODELS = 6
"""Versions in memory at once."""


@dataclass(frozen=True)
class Spans:
    """A trajectory's sampled tokens by version: (version, first place, place after the last), in the trajectory."""

    parts: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, trajectory: Trajectory) -> Spans:
        versions = trajectory.versions
        starts = np.flatnonzero(np.diff(versions, prepend=versions[:1] - 1))
        stops = [*starts[1:], len(versions)]
        return cls(
            tuple((int(versions[i]), int(i), int(j)) for i, j in zip(starts, stops, strict=True) if versions[i] >= 0)
        )

    def __str__(self) -> str:
        return ", ".join(f"version {version}: tokens {start} to {stop - 1}" for version, start, stop in self.parts)


@dataclass(frozen=True)
class Scored:
    """A trajectory and what its stamps are worth."""

    task: int
    attempt: int
    member: int
    spans: Spans
    gap: float
    """Mean |log-prob of the weights stamped - the engine's|, nats a token."""
    allowed: float
    """What rounding explains."""
    told: bool
    """The weights one version off would have been noticed."""
    fits: tuple[int, ...] = ()
    """Of a wrong one: the versions that explain all of it by themselves."""

    @property
    def wrong(self) -> bool:
        return not self.gap <= self.allowed


class Weights:
    """The model of each version, as it was sent."""

    def __init__(self, folders: Mapping[int, str], sent: torch.dtype, temperature: float) -> None:
        """sent: the dtype that the engine has and computes in; compared is with the next more exact one."""
        self.versions = sorted(folders)
        self.sent, self.temperature = sent, temperature
        self.exact = torch.float64 if sent == torch.float32 else torch.float32
        self._folders = folders
        self.model = lru_cache(_MODELS)(self._load)

    def _load(self, version: int, dtype: torch.dtype) -> Any:
        from transformers import AutoModelForCausalLM

        if version not in self._folders:
            raise UserError(
                f"the weights of version {version} are gone; keep those of every version with "
                "checkpoint.every_steps=1 checkpoint.keep_every=1"
            )
        # Of experts only the eager form knows float64.
        kind = {"dtype": self.sent, "experts_implementation": "eager"}
        folder = self._folders[version]
        model = AutoModelForCausalLM.from_pretrained(folder, **kind, local_files_only=True, trust_remote_code=False)
        return model.to(dtype).eval()

    def cache(self, version: int) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.model(version, self.exact).config)

    @torch.no_grad()
    def score(
        self, version: int, tokens: torch.Tensor, start: int, cache: Any = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """log pi of tokens[start:]; [T - start]. The cache holds some of the tokens before `start`, and then all but
        the last."""
        cached = cache.get_seq_length() if cache is not None else 0
        model = self.model(version, dtype or self.exact)
        logits = model(tokens[None, cached:-1], past_key_values=cache, use_cache=cache is not None).logits[0]
        logprobs = torch.log_softmax(logits[start - len(tokens) :].to(self.exact) / self.temperature, -1)
        return logprobs.gather(-1, tokens[start:, None])[:, 0]


def gaps(weights: Weights, trajectory: Trajectory, *, recompute: bool) -> torch.Tensor:
    """|log-prob - the engine's| of each sampled token.

    From one span to the next the KV cache stays, unless `recompute` (`rollout.kv_after_update`), or the engine had
    taken the request's space and read it again from some token on: from the one that explains the log-probs best.
    """
    tokens, behaviour = torch.tensor(trajectory.tokens).long(), torch.tensor(trajectory.logprobs).to(weights.exact)
    found, cache = [], None
    for version, start, stop in Spans.of(trajectory).parts:
        anew = weights.cache(version)
        again = (weights.score(version, tokens[:stop], start, anew) - behaviour[start:stop]).abs()
        if cache is None or recompute:
            cache = anew
            found.append(again)
            continue
        kept = (weights.score(version, tokens[:stop], start, cache) - behaviour[start:stop]).abs()
        zero = kept.new_zeros(1)
        before, after = torch.cat([zero, kept.cumsum(0)]), torch.cat([again.flip(0).cumsum(0).flip(0), zero])
        place = int((before + after).argmin())
        found.append(torch.cat([kept[:place], again[place:]]))
        cache = anew if place < stop - start else cache
    return torch.cat(found)


def rounding(weights: Weights, trajectories: Sequence[Trajectory]) -> float:
    """Root mean square of what the engine's dtype changes in the log-prob of a token, by transformers' kernels."""
    squares: list[float] = []
    for trajectory in trajectories:
        version, start, stop = Spans.of(trajectory).parts[0]
        tokens = torch.tensor(trajectory.tokens[:stop]).long()
        rounded, exact = (weights.score(version, tokens, start, dtype=d) for d in (weights.sent, weights.exact))
        squares += ((rounded - exact) ** 2).tolist()
    return max(float(np.mean(squares)) ** 0.5, torch.finfo(weights.sent).eps)


def check(run_dir: Path, sample: int | None = None) -> Iterator[Scored]:
    """Every recorded trajectory with a sampled token, or so many, spread evenly over the versions. Raises UserError if
    weights or log-probs are missing."""
    recipe = load(run_dir / "recipe.yaml", [])
    weights = Weights(_folders(run_dir, recipe), getattr(torch, recipe.weights.dtype), recipe.rollout.temperature)
    recorded = [
        (group, member if trajectory.member is None else trajectory.member, trajectory)
        for group in map(decode, (record.payload for record in groups(run_dir / "journal")))
        for member, trajectory in enumerate(group.trajectories)
        if (trajectory.versions >= 0).any()
    ]
    if not recorded:
        raise UserError(f"{run_dir}/journal has no trajectory to check; keep them all with journal.keep=all")
    if any(np.isnan(t.logprobs).any() for _, _, t in recorded):
        raise UserError(f"{run_dir} was made by an engine that gives no log-probs; there is nothing to compare")
    # Neighbours have versions in common: fewer are loaded twice.
    recorded.sort(key=lambda found: Spans.of(found[2]).parts[0][0])
    rounded = rounding(weights, [trajectory for _, _, trajectory in spread(recorded, _SAMPLE)])
    recorded = spread(recorded, sample or len(recorded))
    recompute = recipe.rollout.kv_after_update == "recompute"
    with shown("scoring the trajectories", total=len(recorded)) as advance:
        for done, (group, member, trajectory) in enumerate(recorded, 1):
            yield _scored(weights, group, member, trajectory, rounded, recompute)
            advance(done)


def _scored(
    weights: Weights, group: Group, member: int, trajectory: Trajectory, rounded: float, recompute: bool
) -> Scored:
    spans = Spans.of(trajectory)
    found = gaps(weights, trajectory, recompute=recompute)
    # A mean of n scatters by 1/sqrt(n).
    allowed = _ROUNDING * rounded * (1 + 2 / len(found) ** 0.5)
    gap = float(found.mean())
    version, start, stop = spans.parts[0]
    near = [v for v in (version - 1, version + 1) if v in weights.versions]
    told = any(_off(weights, trajectory, v, start, stop) > allowed for v in near)
    fits: tuple[int, ...] = ()
    if not gap <= allowed:
        last = spans.parts[-1][2]
        fits = tuple(v for v in weights.versions if _off(weights, trajectory, v, start, last) <= allowed)
    return Scored(group.task, group.attempt, member, spans, gap, allowed, told, fits)


def _off(weights: Weights, trajectory: Trajectory, version: int, start: int, stop: int) -> float:
    """Mean gap if this version alone had sampled the tokens."""
    logprobs = weights.score(version, torch.tensor(trajectory.tokens[:stop]).long(), start)
    return float((logprobs - torch.tensor(trajectory.logprobs[start:stop])).abs().mean())


def _folders(run_dir: Path, recipe: Recipe) -> dict[int, str]:
    initial = str(run_dir / "initial_model") if recipe.model == TINY_LLAMA else recipe.model
    checkpoints = atomic.complete(run_dir / "checkpoints")
    return {0: initial} | {int(p.name.removeprefix("step_")): str(p / "model") for p in checkpoints}
