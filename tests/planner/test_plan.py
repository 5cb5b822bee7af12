"""Plans by formulas: against figures done by hand, published ones, and what the learner says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from asyncrl.cli import main
from asyncrl.planner import gpus, models, speed
from asyncrl.planner.lengths import Lengths
from asyncrl.planner.plan import ALIKE, plan, scenes, simulated
from asyncrl.planner.shape import Shape
from asyncrl.planner.split import Split, splits
from asyncrl.planner.work import assumed, passes_without_gradient, trained_share
from asyncrl.recipe.algorithm import PRESETS
from asyncrl.recipe.load import load
from asyncrl.recipe.schema import Recipe
from asyncrl.trainer.objective import Objective

ROOT = Path(__file__).parents[2]


def recipe(*overrides: str, name: str = "gsm8k-qwen") -> Recipe:
    return load(ROOT / f"recipes/{name}.yaml", overrides)


def test_splits_take_all_gpus_and_the_best_comes_first() -> None:
    found = plan(recipe(), ROOT, 8)
    assert all(row.split.num_gpus == 8 for row in found.rows)
    speeds = [row.figures.samples_per_s for row in found.rows]
    assert speeds[0] >= ALIKE * max(speeds)
    assert speeds[1:] == sorted(speeds[1:], reverse=True)
    best = found.rows[0]
    again = plan(recipe(*best.split.overrides(found.recipe).split()), ROOT, 8)
    assert again.as_it_stands is not None
    assert again.as_it_stands.split == best.split
    assert again.as_it_stands.figures == best.figures


def test_the_estimate_does_not_miss_the_best_split() -> None:
    """Every division is simulated here; the best is among those that the formula picks."""
    asked = recipe("model=Qwen/Qwen2.5-7B", "rollout.max_new_tokens=2048")
    picked = plan(asked, ROOT, 8)
    assert picked.shape is not None
    assert picked.gpu is not None
    work = assumed(asked)
    scene_of = scenes(asked, picked.shape, picked.gpu, work, None)
    every = splits(asked, picked.shape, picked.gpu, 8, work)
    best = max(simulated(asked, scene_of(split)).samples_per_s for split in every)
    assert picked.rows[0].figures.samples_per_s == pytest.approx(best, rel=0.03)


def test_more_gpus_are_faster() -> None:
    speeds = [plan(recipe("model=Qwen/Qwen2.5-7B"), ROOT, n).rows[0].figures.samples_per_s for n in (4, 8, 16)]
    assert speeds[0] < speeds[1] < speeds[2]


def test_an_engine_lies_on_one_node() -> None:
    """13 GPUs are a node of 8 and one of 5: an engine of 4 fits on each, one of 6 on the first alone."""
    asked = recipe("model=Qwen/Qwen3-1.7B")
    pipelined = recipe(
        "model=Qwen/Qwen3-1.7B",
        "rollout.gpus_per_replica=6",
        "rollout.engine_args={tensor_parallel_size: 2, pipeline_parallel_size: 3}",
    )
    shape, _ = models.find(asked.model, ROOT)
    found = splits(asked, shape, gpus.find("H100"), 13, assumed(asked))
    assert Split(3, 4, 1, 1) in found
    assert Split(1, 8, 5, 5) in found
    assert {split.gpus_per_replica for split in found} == {1, 2, 4, 8}
    assert splits(pipelined, shape, gpus.find("H100"), 13, assumed(pipelined)) == [Split(1, 6, 7, 7)]


def test_training_speed_by_hand() -> None:
    """6 operations per weight and token, 8 with checkpointing; the head once more; attention aside."""
    asked = recipe("model=Qwen/Qwen2.5-7B")
    shape, gpu, work = *models.find(asked.model, ROOT)[:1], gpus.find("H100"), assumed(asked)
    found = speed.train(asked, shape, gpu, 1, 1, work)
    body = shape.layers * shape.layer_parameters
    rows = (work.lengths.mean * 8 + 256) / (work.lengths.mean * 8)
    products = 8 * body * rows + 8 * shape.embedding
    per_token = found.token_s * gpu.flops_per_s * speed.MODEL_FLOPS_UTILIZATION
    assert products < per_token < 1.05 * products
    half = speed.train(recipe("model=Qwen/Qwen2.5-7B"), shape, gpu, 2, 2, work)
    assert half.token_s == pytest.approx(found.token_s / 2)
    exact = recipe("model=Qwen/Qwen2.5-7B", "trainer.precision=fp32")
    assert speed.train(exact, shape, gpu, 1, 1, work).token_s == pytest.approx(15 * found.token_s)


SHAPE = Shape(
    hidden=1536, layers=28, heads=12, kv_heads=2, head_dim=128, intermediate=8960, vocabulary=49_152, tied=True,
    qkv_bias=True,
)  # fmt: skip
"""Of the model that was measured on an H100 (docs/benchmarks.md)."""


def test_a_pass_takes_as_long_as_it_was_measured() -> None:
    """One group of 8 answers of 512 to 1,024 tokens after a prompt of 512: 0.176 s."""
    asked, gpu = recipe("trainer.gradient_checkpointing=false"), gpus.find("H100")
    work = replace(assumed(asked), num_groups=1, prompt_tokens=512.0, lengths=Lengths.constant(731))
    assert work.row_tokens == pytest.approx(6_358, rel=0.001)
    found = speed.train(asked, SHAPE, gpu, 1, 1, work)
    assert found.token_s * work.completion_tokens == pytest.approx(0.176, rel=0.15)


def test_a_step_takes_as_long_as_it_was_measured() -> None:
    """Eight of them, and AdamW: 1.47 s."""
    asked, gpu = recipe("trainer.gradient_checkpointing=false"), gpus.find("H100")
    work = replace(assumed(asked), num_groups=8, prompt_tokens=512.0, lengths=Lengths.constant(731))
    found = speed.train(asked, SHAPE, gpu, 1, 1, work)
    assert found.token_s * work.completion_tokens + found.step_s == pytest.approx(1.47, rel=0.15)


CHANGES = {
    **{name: [f"algorithm.preset={name}"] for name in PRESETS},
    "kl in the loss": ["algorithm.kl_coef=0.1"],
    "kl in the reward": ["algorithm.kl_coef=0.1", "algorithm.kl_in=reward"],
    "several updates": ["trainer.minibatches=2", "trainer.epochs=2"],
    "several updates, no proximal pass": ["trainer.minibatches=2", "algorithm.proximal=behaviour"],
    "several updates of m2po": ["algorithm.preset=m2po", "trainer.epochs=2"],
    "entropies": ["algorithm.entropy_quantile=0.8"],
}


@pytest.mark.parametrize("change", CHANGES)
def test_passes_are_those_of_the_learner(change: str) -> None:
    """What the objective itself says that it needs, as `trainer/learner.py` carries it out."""
    asked = recipe(*CHANGES[change])
    a, trainer = asked.algorithm, asked.trainer
    objective = Objective(a, asked.rollout.max_new_tokens)
    several = trainer.epochs * trainer.minibatches > 1 and a.proximal == "recompute"
    passes = objective.needs_reference + (several or objective.needs_prox) + (a.advantage == "gae")
    assert passes_without_gradient(asked) == passes + trainer.epochs * objective.needs_plan
    assert trained_share(asked) == (2 / asked.group_size if objective.in_pairs else 1)


def test_the_command_prints_a_table_and_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "recipes/gsm8k-qwen.yaml"), "--gpus", "4", "--mean-tokens", "300"]) == 0
    said = capsys.readouterr().out
    assert "1.54 billion parameters (published sizes)" in said
    assert "completions of 300 in the mean" in said
    assert "not checked against a run" in said
    row = next(line for line in said.splitlines() if line.startswith("2 x 1 GPU"))
    assert "<=1024" in row
    assert "as it is" not in said  # it asks for two GPUs
    assert said.splitlines()[-1] == "set by    rollout.replicas=2 trainer.ranks=2"


def test_a_plan_loads_no_heavy_library() -> None:
    code = (
        "import sys; from asyncrl.cli import main; main(sys.argv[1:]);"
        "assert not {'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "plan", str(ROOT / "recipes/math-32b.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"4 x 4 GPU +16 \*", done.stdout)


def test_one_gpu_is_shared() -> None:
    """Shares are of memory: the trainer's holds all of it, and what is left has room for the engine."""
    asked = recipe(name="gsm8k-1gpu")
    assert asked.on_one_gpu
    [row] = plan(asked, ROOT, 1, "RTX4090").rows
    gpu = gpus.find("RTX4090")
    assert row.split == Split(1, 0.35, 1, 1, 0.65, 3) == Split.of(asked)
    assert row.split.num_gpus == 1
    assert row.trainer is not None
    assert row.trainer.total <= 0.65 * gpu.memory_bytes
    assert row.generator is not None
    assert row.generator.kv_cache == 3 * gpus.GIB
    [smaller] = plan(recipe("rollout.kv_cache_gib=60", name="gsm8k-1gpu"), ROOT, 1, "RTX4090").rows
    assert "rollout.kv_cache_gib=4.5" in smaller.split.overrides(recipe("rollout.kv_cache_gib=60", name="gsm8k-1gpu"))
    larger = plan(recipe(), ROOT, 1, "H100").rows[0].split
    followed = recipe(*larger.overrides(recipe()).split(), "rollout.engine_args={}", "weights.channel=auto")
    assert followed.on_one_gpu
    assert Split.of(followed) == larger
    assert larger.gpus_per_rank + larger.gpus_per_replica == 1
