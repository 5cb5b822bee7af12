"""What happened, as numbers: collects from the driver, writes one record a step and the summary."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyncrl.buffer.actor import Key
from asyncrl.control.ledger import Ledger
from asyncrl.control.messages import Train
from asyncrl.envs.environment import ToolUse
from asyncrl.errors import naming
from asyncrl.metric_names import REWARD_KEYS, TRAINER_KEYS, nth
from asyncrl.observe.bottleneck import bottleneck, bottleneck_of_answers
from asyncrl.observe.failures import RewardFailures
from asyncrl.observe.health import Health
from asyncrl.observe.metrics import MetricsWriter, complete, result, shares, write_summary
from asyncrl.observe.trackers import Trackers
from asyncrl.orchestrator import fingerprint
from asyncrl.rollout.occupancy import REWARDS, STATES
from asyncrl.rollout.summary import GroupSummary
from asyncrl.trainer.backend import NUM_SAMPLED, TokenGaps
from asyncrl.trainer.messages import TrainResult
from asyncrl.verdicts import accuracy
from asyncrl.weights.update import PublishReport

logger = logging.getLogger(__name__)


class Recorder:
    """One run's figures. Times in seconds; the window of a step goes from the end of the step before to its own."""

    def __init__(
        self,
        run_dir: Path,
        writer: MetricsWriter,
        trackers: Trackers,
        num_answered: int | None = None,
        data: Sequence[Mapping[str, Any]] = (),
        taught_alone: bool = False,
    ) -> None:
        """Goes on from the last record there is, if any. `num_answered`: rows that are drawn, if they have the answers,
        so that there are epochs but no rewards. `data`: what the summary says of each source. `taught_alone`: rewards
        are zeros that mean nothing."""
        self.run_dir, self._num_answered, self._data = run_dir, num_answered, list(data)
        self._taught_alone = taught_alone
        self._writer = writer
        self._trackers = trackers
        records = writer.records()
        self.first: dict[str, Any] = records[0] if records else {}
        self.last: dict[str, Any] = records[-1] if records else {}
        self.sample: Mapping[str, Any] = {}
        """One of the last step's, in words."""
        self._wall_before_s = float(self.last.get("time_s", 0.0))
        self._tokens_generated = int(self.last.get("tokens/generated", 0))
        self._reward_failures = int(self.last.get("rewards/failed", 0))
        self._failures, self._silences = RewardFailures(), RewardFailures()
        self._untaught = int(self.last.get("distil/failed", 0))
        """Trajectories of which a teacher has failed to say anything."""
        self._asked = self._failed = 0
        """Rewards since the last step, and those of them that failed."""
        self._groups: dict[Key, GroupSummary] = {}
        self._trained: tuple[Train, TrainResult] | None = None
        self._publish = PublishReport(0, 0.0, 0.0, 0)
        self._shares: list[dict[str, float]] = []
        self._health = Health()
        for record in records:
            self._health.check(record)
        self._said: set[str] = set()
        self._checkpoint_s = 0.0

    def begin(self) -> None:
        """The run starts to count: actors are up."""
        self._began = self._step_began = self._trainer_free = time.perf_counter()
        self._wait_batch_s = 0.0

    @property
    def wall_s(self) -> float:
        return self._wall_before_s + time.perf_counter() - self._began

    @property
    def warnings(self) -> list[str]:
        """Those that hold since the last step."""
        return list(self._health.active.values())

    # -- from the driver

    def group(self, summary: GroupSummary) -> None:
        silences = [error for error in summary.taught if error]
        self._untaught += len(silences)
        for message in self._silences.add(silences):
            logger.warning("a trajectory is not taught: %s (distil/failed counts them)", message)
        errors = [*summary.errors, *summary.replaced]
        self._reward_failures += len(errors)
        self._asked += len(summary.rewards) + len(summary.replaced)
        self._failed += len(errors)
        for message in self._failures.add(errors):
            what = "an episode" if message.startswith(("the environment", "the episode")) else "a reward"
            if message not in silences:
                logger.warning("%s failed, and its trajectory is not trained: %s", what, message)
        self._tokens_generated += summary.num_tokens
        if summary.detail and summary.reason not in self._said:
            self._said.add(summary.reason)
            number, reason, why = summary.task, summary.reason, summary.detail
            logger.warning("task %d is filtered (%s, said of the first only): %s", number, reason, why)
        if summary.outcome == "finished":
            self.known(summary)

    def known(self, summary: GroupSummary) -> None:
        """A finished group that an earlier process counted."""
        self._groups[(summary.task, summary.attempt)] = summary

    def forget(self, keys: list[Key]) -> None:
        for key in keys:
            self._groups.pop(key, None)

    def batch_taken(self, train: Train) -> None:
        self._wait_batch_s = time.perf_counter() - self._trainer_free

    def trained(self, train: Train, result: TrainResult) -> None:
        self._trained = (train, result)

    def published(self, report: PublishReport) -> None:
        self._publish = report

    def evaluated(self, figures: dict[str, Any]) -> None:
        """An evaluation is done; viewers get its figures with the step that is the newest."""
        self._trackers.log(int(self.last.get("step", 0)), figures)

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Nothing can be trained meanwhile."""
        began = time.perf_counter()
        yield
        self._checkpoint_s += time.perf_counter() - began

    # -- records

    def step(
        self, step: int, ledger: Ledger, generators: list[dict[str, float]], serving: int, wanted: int
    ) -> dict[str, Any]:
        """Write and return the record of a step. `generators`: what those that answered say of themselves; `serving`
        of `wanted` do their work."""
        assert self._trained is not None
        train, result = self._trained
        now = time.perf_counter()
        wall_s = now - self._step_began
        batch = [self._groups[key] for key in train.groups]
        record: dict[str, Any] = {
            "step": step,
            "version": step + 1,
            "time_s": self.wall_s,
            **_rewards(batch),
            **_staleness(step, batch, result),
            "staleness/bound": train.step - train.min_version,
            **_ledger(ledger),
            "tokens/generated": self._tokens_generated,
            "tokens/trained": result.report.tokens_trained,
            "throughput/samples_per_s": sum(len(g.rewards) for g in batch) / wall_s,
            "throughput/tokens_per_s": result.report.tokens_trained / wall_s,
            **self._trainer_time(result, wall_s),
            **_generator_time(generators),
            "generators/serving": serving,
            "generators/wanted": wanted,
            "publish/pause_s": self._publish.pause_s,
            "publish/transfer_s": self._publish.transfer_s,
            "publish/bytes": self._publish.num_bytes,
            "rewards/failed": self._reward_failures,
            "rewards/failed_share": self._failed / self._asked if self._asked else None,
            **dict.fromkeys(TRAINER_KEYS),
            **result.report.metrics,
        }
        if self._num_answered or self._taught_alone:
            record |= dict.fromkeys((*REWARD_KEYS, "accuracy/mean"))
        if self._num_answered:
            record["rewards/failed_share"] = None
            record["data/epoch"] = (ledger.trained + ledger.filtered) / self._num_answered
        if ledger.skipped:
            record["data/skipped"] = ledger.skipped
        if "distil/taught_share" in record or self._untaught:
            record["distil/failed"] = self._untaught
        complete(record)
        for sentence in self._health.check(record):
            logger.warning("step %d: %s", nth(step), sentence)
        record["health/warnings"] = len(self._health.active)
        self._writer.write(record)
        samples = {number: group.sample for number, group in enumerate(batch[:NUM_SAMPLED]) if group.sample}
        self._trackers.log(step, record, list(samples.values()))
        self.sample = next(iter(samples.values()), {})
        self._write_samples(step, samples, result.report.gaps)
        self._shares.append({k: v for k, v in record.items() if "_time/" in k})
        self.first = self.first or record
        self.last = record
        self._step_began = self._trainer_free = now
        self._checkpoint_s = 0.0
        self._asked = self._failed = 0
        self.forget(list(train.groups))
        return record

    def _trainer_time(self, result: TrainResult, wall_s: float) -> dict[str, float]:
        measured = {
            "busy": result.busy_s,
            "wait_batch": self._wait_batch_s,
            "wait_publish": result.wait_publish_s,
            "checkpoint": self._checkpoint_s + result.wait_copy_s,
        }
        return {f"trainer_time/{k}": v for k, v in shares(measured, wall_s).items()}

    def _write_samples(self, step: int, samples: Mapping[int, Any], gaps: Mapping[int, TokenGaps]) -> None:
        """The first groups' samples by number of the group; `gaps` likewise, of those that have them."""
        path = self.run_dir / "samples.jsonl"
        with naming(path), path.open("a") as file:
            for number, sample in samples.items():
                known = {"gaps": gaps[number]} if number in gaps else {}
                file.write(json.dumps({"step": step, **sample, **known}) + "\n")

    def finish(self, ledger: Ledger, worst_case: int) -> dict[str, Any]:
        """Write and return the summary."""
        means = {}
        if self._shares:
            means = {k: statistics.fmean(s[k] for s in self._shares) for k in self._shares[0]}
        summary = {
            "ledger": vars(ledger),
            "data": self._data,
            "wall_s": self.wall_s,
            "worst_case_staleness": worst_case,
            "tokens_generated": self._tokens_generated,
            "reward_failures": self._reward_failures,
            # Of this process: what a run before its resume met is counted above only.
            "reward_failure_reasons": self._failures.counts,
            **({"teacher_failure_reasons": counts} if (counts := self._silences.counts) else {}),
            "changes": fingerprint.changes(self.run_dir),
            "final": self.last,
            "result": result(self.first, self.last),
            "bottleneck": (bottleneck_of_answers if self._num_answered else bottleneck)(means) if means else "",
            "warnings": [vars(said) for said in self._health.said.values()],
        }
        write_summary(self.run_dir / "summary.json", summary)
        return summary


def _rewards(batch: list[GroupSummary]) -> dict[str, float | None]:
    rewards = [r for g in batch for r in g.rewards]
    extras = [e for g in batch for e in g.extras]
    scored = [r for r in rewards if r is not None]
    named = {name for e in extras for name in e}
    return {
        **dict.fromkeys(REWARD_KEYS),
        **({"reward/mean": statistics.fmean(scored), "reward/std": statistics.pstdev(scored)} if scored else {}),
        **({"reward/min": min(scored), "reward/max": max(scored)} if scored else {}),
        "accuracy/mean": accuracy(rewards, extras),
        **{f"reward/{name}": statistics.fmean(e[name] for e in extras if name in e) for name in sorted(named)},
        "completion/tokens_mean": statistics.fmean(g.num_tokens / len(g.rewards) for g in batch),
        "completion/truncated_share": sum(g.num_truncated for g in batch) / len(rewards),
        "completion/turns_mean": statistics.fmean(g.num_turns / len(g.rewards) for g in batch),
        "completion/sequences_mean": statistics.fmean(g.num_sequences / len(g.rewards) for g in batch),
        "completion/context_max": max(g.longest for g in batch),
        **_tools(batch, len(rewards)),
    }


def _tools(batch: list[GroupSummary], num_rollouts: int) -> dict[str, float]:
    use = ToolUse()
    for group in batch:
        use.add(group.tools)
    if not use.calls:
        return {}
    return {
        "tools/calls_mean": use.calls / num_rollouts,
        "tools/failed_share": use.failed / use.calls,
        "tools/latency_s": use.seconds / use.calls,
    }


def _staleness(step: int, batch: list[GroupSummary], result: TrainResult) -> dict[str, Any]:
    ages = result.report.staleness
    total = sum(ages)
    return {
        "staleness/mean": sum(age * n for age, n in enumerate(ages)) / total if total else 0.0,
        "staleness/max": max((age for age, n in enumerate(ages) if n), default=0),
        "staleness/histogram": list(ages),
        "staleness/in_flight": statistics.fmean(g.in_flight for g in batch),
        "staleness/in_queue": statistics.fmean(step - g.newest_version for g in batch),
        "trajectories/mixed_versions": sum(g.num_mixed for g in batch),
    }


def _ledger(ledger: Ledger) -> dict[str, int]:
    names = ("trained", "filtered", "stale", "failed", "requeued", "running", "ready")
    return {f"groups/{name}": getattr(ledger, name) for name in names}


def _generator_time(generators: list[dict[str, float]]) -> dict[str, float]:
    """Mean over the generators that answered; all idle if none did."""
    seconds = {s: sum(g.get(s, 0.0) for g in generators) for s in (*STATES, REWARDS)}
    total = sum(seconds[s] for s in STATES)
    if not total:
        seconds, total = {**dict.fromkeys(seconds, 0.0), "idle": 1.0}, 1.0
    states = {f"generator_time/{s}": seconds[s] / total for s in STATES}
    return {**states, "reward_time/waiting": seconds[REWARDS] / total}
