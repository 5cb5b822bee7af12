"""A made-up run directory: 20 steps of a small asynchronous run that learns, as the recorder would write them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from asyncrl.observe.metrics import MetricsWriter, complete, shares, write_summary

NUM_STEPS = 20
STEP_S = 14.0
GROUPS, GROUP_SIZE = 16, 8

RECIPE = """\
model: models/smollm2-135m-instruct
data: {path: "reasoning_gym:chain_sum"}
reward: asyncrl.rewards.math:last_number
group_size: 8
groups_per_step: 16
max_steps: 20
max_staleness: 2
"""


def records(num_steps: int = NUM_STEPS) -> list[dict[str, Any]]:
    rng = random.Random(0)
    return [_record(step, rng) for step in range(num_steps)]


def _record(step: int, rng: random.Random) -> dict[str, Any]:
    right = 0.9 / (1 + math.exp(-0.5 * (step - 8))) + rng.uniform(-0.03, 0.03) + 0.06
    age = min(step, 2)
    trainer = {
        "busy": STEP_S * (0.72 + rng.uniform(-0.05, 0.05)),
        "wait_batch": STEP_S * (0.5 if step == 0 else 0.1) * rng.uniform(0.3, 0.5),
        "wait_publish": 0.4,
        "checkpoint": 0.9 if step % 5 == 4 else 0.0,
    }
    generator = {"busy": 4.2 + rng.uniform(-0.8, 0.8), "paused": 0.6, "idle": 9.2}
    tokens = int(GROUPS * GROUP_SIZE * rng.uniform(11, 14))
    record = {
        "step": step,
        "version": step + 1,
        "time_s": STEP_S * (step + 1),
        "reward/mean": right,
        "reward/std": math.sqrt(max(0.0, right * (1 - right))),
        "accuracy/mean": right,
        "completion/tokens_mean": tokens / GROUPS / GROUP_SIZE,
        "staleness/mean": 0.8 * age + rng.uniform(-0.1, 0.1) * (age > 0),
        "staleness/max": age,
        "staleness/histogram": [tokens // (1 + age)] * (1 + age),
        "staleness/in_flight": 0.3 * (age > 0),
        "staleness/in_queue": 0.6 * age,
        "groups/trained": GROUPS * (step + 1),
        "groups/filtered": step // 6,
        "groups/stale": step // 9,
        "staleness/bound": 2,
        "groups/failed": 0,
        "groups/requeued": step // 9,
        "groups/running": 18,
        "groups/ready": 14,
        "tokens/generated": 1700 * (step + 1),
        "tokens/trained": tokens,
        "throughput/samples_per_s": GROUPS * GROUP_SIZE / STEP_S * rng.uniform(0.95, 1.05),
        "throughput/tokens_per_s": tokens / STEP_S,
        **{f"trainer_time/{name}": share for name, share in shares(trainer, STEP_S).items()},
        **{f"generator_time/{name}": s / sum(generator.values()) for name, s in generator.items()},
        "publish/pause_s": 0.25 + rng.uniform(0, 0.05),
        "publish/transfer_s": 0.6 + rng.uniform(0, 0.2),
        "publish/bytes": 269_030_400,
        "offpolicy/logprob_gap": 0.012 + 0.004 * age + rng.uniform(0, 0.003),
        "offpolicy/ess": 0.99 - 0.02 * age - rng.uniform(0, 0.01),
        "offpolicy/clip_fraction": 0.01 * age + rng.uniform(0, 0.004),
        "offpolicy/kl": 0.001 + 0.002 * age,
        "rewards/failed": 0,
        "rewards/failed_share": 0.0,
        "completion/truncated_share": 0.2 - 0.01 * step,
    }
    complete(record)
    return record


def of_answers(num_steps: int = NUM_STEPS) -> list[dict[str, Any]]:
    """Of a run whose data has the answers."""
    none = dict.fromkeys(("reward/mean", "reward/std", "accuracy/mean", "rewards/failed_share"))
    made = []
    for record in records(num_steps):
        loss = 3.0 / (1 + record["step"])
        learnt = {"trainer/loss": loss, "sft/nll": loss, "sft/perplexity": math.exp(loss)}
        learnt |= {"trainer/grad_norm": 1.0, "trainer/learning_rate": 1e-5, "data/epoch": 0.25 * (1 + record["step"])}
        made.append({**record, **none, **learnt})
    return made


def samples() -> list[dict[str, Any]]:
    """One trajectory per step; its first half was sampled by an older version from step 2 on."""
    words = ["The", " answer", " to", " 3", " +", " 5", " is", " <", "b", ">8", "</b>", ".", "<|im_end|>"]
    made = []
    for step in range(NUM_STEPS):
        oldest = max(0, step - 2)
        versions = [oldest] * 5 + [min(step, oldest + 1)] * 4 + [step] * (len(words) - 9)
        ages = [step - version for version in versions]
        made.append(
            {
                "step": step,
                "task": 16 * step + 3,
                "prompt": "What is 3 + 5?\nAnswer with <b>one</b> number & nothing else.",
                "completion": "".join(words),
                "tokens": words,
                "versions": versions,
                "gaps": [round(0.004 * age + 0.001 * (5 * place % 7) ** 3, 4) for place, age in enumerate(ages)],
                "reward": 1.0 if step > 3 else 0.0,
            }
        )
    return made


def status() -> dict[str, Any]:
    """The last second of a run that goes on, with one generator that is being started again."""
    serving = {"state": "serving", "version": 6, "groups": 9, "tokens_per_s": 431.2}
    return {
        "phase": "training",
        "steps_done": 7,
        "live": 6,
        "ledger": {"drawn": 144, "running": 16, "ready": 16, "leased": 0, "trained": 112, "filtered": 0, "failed": 0},
        "waiting": ["trainer: step 7, for 4 s of 600 s"],
        "generators": [
            {"name": "generator-0", **serving, "busy": 0.61, "paused": 0.03, "idle": 0.36},
            {"name": "generator-1", "state": "starting"},
        ],
        "warnings": [],
    }


def summary(last: dict[str, Any]) -> dict[str, Any]:
    return {
        "ledger": {
            "drawn": 355,
            "running": 16,
            "ready": 16,
            "leased": 0,
            "trained": 320,
            "filtered": 3,
            "failed": 0,
            "stale": 2,
            "requeued": 2,
            "filtered_reasons": {"prompt_too_long": 3},
            "failed_reasons": {},
        },
        "wall_s": 283.4,
        "worst_case_staleness": 2,
        "tokens_generated": 34_000,
        "reward_failures": 0,
        "final": last,
        "bottleneck": "trainer-bound: generators idle 66 % of the time at the staleness bound; "
        "give the trainer more cores or GPUs, or shorten its step",
    }


def write_run(run_dir: Path) -> Path:
    """A finished run: recipe.yaml, metrics.jsonl, samples.jsonl, summary.json."""
    run_dir.mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text(RECIPE)
    writer = MetricsWriter(run_dir / "metrics.jsonl")
    made = records()
    for record in made:
        writer.write(record)
    (run_dir / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples()))
    write_summary(run_dir / "summary.json", summary(made[-1]))
    return run_dir
