"""Whether a step's figures say that a run is off: sentences with what is wrong and which keys to look at.

A pure function of the record and of the few before it; nothing here stops a run. Figures that a step does not have
(None, NaN, missing) say nothing.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncrl.metric_names import has_answers

Record = Mapping[str, Any]

GAP_LIMIT_NATS = 0.05
"""In bf16 an engine was seen to differ from its trainer by 0.01 to 0.04 nats on its own tokens, in fp32 by 1e-7."""
GAP_OF_AN_UPDATE_NATS = 0.5
"""An update of a quickly learning policy was seen to move its log-probs by 0.02 to 0.27 nats a token."""
ESS_LIMIT = 0.3
"""Below it fewer than a third of the tokens carry the importance weight of the batch."""
CUT_LIMIT = 0.5
"""Above it most of what was generated does not train."""
FILTERED_LIMIT = 0.8
"""Above it more than five groups are generated for each one trained."""
ENTROPY_LIMIT_NATS = 0.01
"""Below it the trajectories of a group are nearly always the same, so that their rewards are equal."""
FAILED_LIMIT = 0.05
"""From it on failed rewards are no accidents; 27 % of them once went unnoticed, as the others train."""
TRUNCATED_LIMIT = 0.5
"""Above it most completions have no end, and so perhaps no answer."""
TRUNCATED_STEPS = 10
"""It is said after so many steps above it: a model that runs on at first may learn to stop."""
SPIKE_FACTOR = 10.0
"""Norms differ by a factor of two or three from step to step; ten times the median is another regime."""
WINDOW_STEPS = 20
"""Steps that a spike and the share of filtered groups are judged by: long enough for a median, short against a run."""
LEAST_STEPS = 5
"""Fewer norms than this have no meaningful median."""


def warnings(record: Record, history: Sequence[Record] = ()) -> list[str]:
    """What is off in the record of a step, in sentences; history: records of the steps before it, oldest first."""
    return list(_findings(record, history).values())


@dataclass
class Said:
    """One warning over a run: how often it held, and how it read last."""

    sentence: str
    first_step: int
    last_step: int
    num_steps: int


class Health:
    """Remembers what it has said and the last records."""

    def __init__(self) -> None:
        self._history: deque[Record] = deque(maxlen=WINDOW_STEPS)
        self.active: dict[str, str] = {}
        """Warnings that hold at the last record, whether new or said before, by the name of the check."""
        self.said: dict[str, Said] = {}
        """All that ever held, likewise."""

    def check(self, record: Record) -> list[str]:
        """The warnings that hold now and did not hold at the record before."""
        found = _findings(record, self._history)
        new = [sentence for name, sentence in found.items() if name not in self.active]
        for name, sentence in found.items():
            step = record.get("step", 0)
            said = self.said.setdefault(name, Said(sentence, step, step, 0))
            said.sentence, said.last_step, said.num_steps = sentence, step, said.num_steps + 1
        self.active = found
        self._history.append(dict(record))
        return new


def _findings(record: Record, history: Sequence[Record]) -> dict[str, str]:
    """Sentences by the name of the check."""
    checks = {
        "fewer": _fewer(record),
        "gap": _gap(record),
        "ess": _ess(record),
        "clipped": _clipped(record),
        "masked": _masked(record),
        "no_gradient": _no_gradient(record),
        "alone": _alone(record),
        "filtered": _filtered(record, history),
        "failed_rewards": _failed_rewards(record, history),
        "truncated": _truncated(record, history),
        "entropy": _entropy(record),
        "spike": _spike(record, history),
    }
    return {name: sentence for name, sentence in checks.items() if sentence is not None}


def _fewer(record: Record) -> str | None:
    serving, wanted = _figure(record, "generators/serving"), _figure(record, "generators/wanted")
    if serving is None or wanted is None or serving >= wanted:
        return None
    return (
        f"{serving:.0f} of {wanted:.0f} generators serve (rollout.replicas): the others load, or wait for room on the "
        "cluster (asyncrl watch says which)"
    )


def _gap(record: Record) -> str | None:
    advice = (
        "they disagree about the sampled distribution; look at rollout.temperature, rollout.engine_args (quantisation, "
        "penalties), weights.dtype and trainer.precision, and set weights.verify=true"
    )
    same = _figure(record, "offpolicy/logprob_gap_age0")
    if same is not None and same > GAP_LIMIT_NATS:
        return (
            f"offpolicy/logprob_gap_age0 is {same:.3f} nats per token although trainer and engine hold the same "
            f"weights: {advice}"
        )
    gap, age = _figure(record, "offpolicy/logprob_gap"), _figure(record, "staleness/updates_mean")
    # Replayed trajectories are older than the age says. Where there are tokens of age 0, those speak.
    if same is not None or gap is None or age is None or _figure(record, "replay/share"):
        return None
    if gap <= GAP_LIMIT_NATS + GAP_OF_AN_UPDATE_NATS * age:
        return None
    return (
        f"offpolicy/logprob_gap is {gap:.3f} nats per token between trainer and engine, more than the {age:.1f} "
        f"updates between them explain: {advice}, or lower trainer.learning_rate"
    )


def _ess(record: Record) -> str | None:
    ess = _figure(record, "offpolicy/ess")
    if ess is None or ess >= ESS_LIMIT:
        return None
    return (
        f"offpolicy/ess is {ess:.2f}: a few tokens carry the importance weights of the batch; lower max_staleness, "
        "trainer.learning_rate or trainer.epochs, or set algorithm.correction"
    )


def _clipped(record: Record) -> str | None:
    share, gap = _figure(record, "offpolicy/clip_fraction"), _figure(record, "offpolicy/logprob_gap")
    # Without a gap it is rounding that a narrow bound cuts, such as tis_cap 1 or GSPO's.
    if share is None or share <= CUT_LIMIT or gap is None or gap <= GAP_LIMIT_NATS:
        return None
    return (
        f"offpolicy/clip_fraction is {share:.2f}: the objective cuts most tokens (about half is normal with a cap of "
        "1, more with GSPO's bounds); lower max_staleness or trainer.learning_rate, or look at algorithm.clip_low, "
        "clip_high, tis_cap, mis_low and mis_high"
    )


def _masked(record: Record) -> str | None:
    share = _figure(record, "offpolicy/masked_fraction")
    if share is None or share <= CUT_LIMIT:
        return None
    return (
        f"offpolicy/masked_fraction is {share:.2f}: most tokens are left out; lower max_staleness or "
        "trainer.learning_rate, or look at algorithm.reject_kl, second_moment_limit and entropy_quantile"
    )


def _no_gradient(record: Record) -> str | None:
    if _figure(record, "trainer/forward_tokens") != 0:
        return None
    skipped = _figure(record, "trainer/skipped_zero_advantage") or 0
    if not skipped and (left_out := _figure(record, "trainer/masked_truncated")):
        return (
            f"no trajectory of the step is trained: all {left_out:.0f} were cut off at rollout.max_new_tokens, and "
            "algorithm.mask_truncated leaves such out; raise rollout.max_new_tokens"
        )
    return (
        f"no trajectory of the step has a gradient (trainer/skipped_zero_advantage {skipped:.0f}): in every group all "
        "rewards are equal; look at the reward on samples.jsonl, take easier or harder tasks, or raise group_size or "
        "rollout.temperature"
    )


def _alone(record: Record) -> str | None:
    if _figure(record, "trainer/prefix_trees") != 0:
        return None
    return (
        "every trajectory passes the model alone (trainer/prefix_trees 0), so that a step takes several times as "
        "long: what the trajectories of a group share is computed for each; the log says why this model needs it"
    )


def _filtered(record: Record, history: Sequence[Record]) -> str | None:
    before = history[0] if history else {}
    names = ("groups/filtered", "groups/trained")
    filtered, trained = ((_figure(record, name) or 0) - (_figure(before, name) or 0) for name in names)
    share = filtered / (filtered + trained) if filtered + trained > 0 else 0.0
    if share <= FILTERED_LIMIT:
        return None
    return (
        f"{100 * share:.0f} % of the groups that came lately were filtered: prompts over rollout.max_prompt_tokens, or "
        "equal rewards under algorithm.filter_equal_rewards (summary.json has the reasons); take other tasks, or raise "
        "group_size"
    )


def _failed_rewards(record: Record, history: Sequence[Record]) -> str | None:
    shares = [share for r in (*history, record) if (share := _figure(r, "rewards/failed_share")) is not None]
    # The mean too, or a share about the limit would come and go.
    share = max(shares[-1], statistics.fmean(shares)) if shares else 0.0
    if share < FAILED_LIMIT:
        return None
    return (
        f"{100 * share:.0f} % of the rewards failed lately, and their trajectories are not "
        "trained; the first of each kind is in the log, the counts are in summary.json; look at the reward, or at "
        "rewards.timeout_s"
    )


def _truncated(record: Record, history: Sequence[Record]) -> str | None:
    shares = [share for r in (*history, record) if (share := _figure(r, "completion/truncated_share")) is not None]
    if len(shares) < TRUNCATED_STEPS or min(shares[-TRUNCATED_STEPS:]) <= TRUNCATED_LIMIT:
        return None
    return (
        f"completion/truncated_share is {shares[-1]:.2f}: most completions are cut off at "
        "rollout.max_new_tokens, and are judged without their end; raise it, or look at samples.jsonl for what should "
        "end them (rollout.stop, the chat template)"
    )


def _entropy(record: Record) -> str | None:
    entropy = _figure(record, "trainer/entropy")
    # Answers that are given may be certain.
    if entropy is None or entropy >= ENTROPY_LIMIT_NATS or has_answers(record):
        return None
    return (
        f"trainer/entropy is {entropy:.4f} nats per token: the policy hardly samples any more; raise "
        "algorithm.clip_high or algorithm.kl_coef, or lower trainer.learning_rate, from a checkpoint before it fell"
    )


def _spike(record: Record, history: Sequence[Record]) -> str | None:
    norm = _figure(record, "trainer/grad_norm")
    # Zero is a step without a gradient, not a small one.
    norms = [n for n in (_figure(r, "trainer/grad_norm") for r in history) if n]
    if norm is None or len(norms) < LEAST_STEPS or norm <= SPIKE_FACTOR * statistics.median(norms):
        return None
    return (
        f"trainer/grad_norm is {norm:.3g}, more than {SPIKE_FACTOR:g} times the median of the steps before; if it "
        "stays so, lower trainer.learning_rate, and look at this step's offpolicy/* and at its samples"
    )


def _figure(record: Record, key: str) -> float | None:
    value = record.get(key)
    return value if isinstance(value, int | float) and math.isfinite(value) else None
