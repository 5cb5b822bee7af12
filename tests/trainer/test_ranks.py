"""n ranks compute what one computes, to rounding: real processes over gloo, FSDP2, the same steps."""

from __future__ import annotations

import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import groups, recipe
from torch import multiprocessing

from asyncrl.checkpoint import files
from asyncrl.cluster.rendezvous import Rendezvous, open_rendezvous
from asyncrl.data.demonstrations import Rendered
from asyncrl.models import make_tiny_llama
from asyncrl.recipe.schema import Recipe
from asyncrl.trainer.backend import StepReport
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.loading import from_folder
from asyncrl.trainer.model import load_model
from asyncrl.trainer.ranks import ProcessGroup
from asyncrl.weights.shards import assemble
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.transports.nccl import StagedSource

CPU = torch.device("cpu")
DEADLINE_S = 120.0
BATCHES = [
    groups(seed, [[1.0, 0.0, 0.25], [1.0, 1.0], [0.0, None, 1.0, 0.0], [0.5, 0.0]], version=seed - 1)
    for seed in (1, 2, 3)
]
TEACHER = "teacher_of_ranks"
"""A folder beside the model."""
TOKENS = list(range(5, 30))
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "several updates": {"trainer": {"epochs": 2, "minibatches": 2}},
    "reference": {"algorithm": {"kl_coef": 0.1, "reference_reset_steps": 2}},
    "critic": {"algorithm": {"advantage": "gae", "normalise_advantages": True}},
    "whole mini-batch": {"algorithm": {"loss": "m2po", "second_moment_limit": 0.04, "correction": "none"}},
    "sums of groups": {"algorithm": {"loss": "trajectory_balance", "correction": "none"}},
    "teacher": {"algorithm": {"teacher": TEACHER, "teacher_coef": 0.5}},
    "adapters": {"trainer": {"lora": {"rank": 4}}},
    "demonstrations": {"algorithm": {"loss": "sft", "advantage": "none", "correction": "none"}},
    "pairs": {
        "algorithm": {"loss": "dpo", "advantage": "none", "aggregation": "sequence", "correction": "none"},
    },
    "rows beside": {
        "algorithm": {"sft": {"data": {"path": "x"}, "coef": 0.5, "rows_per_step": 3}},
        "trainer": {"minibatches": 2, "ema": 0.5},
    },
    "checkpointing": {"trainer": {"gradient_checkpointing": True}},
    "left out": {"algorithm": {"reject_kl": 1.0}},
    "bf16": {"trainer": {"precision": "bf16"}},
    "fp16": {"trainer": {"precision": "fp16"}},
    "muon": {"trainer": {"optimizer": {"name": "muon"}}},
    "offloaded": {"trainer": {"optimizer": {"offload": True}}},
}
BF16 = 2.0**-8
"""Spacing of bf16 numbers around 1: what one product's result may be off by, relatively."""


def recipe_of(case: str, ranks: int, copies: int = 1) -> Recipe:
    keys = CASES[case]
    trainer = {"precision": "fp32", "learning_rate": 1e-3, "tokens_per_microbatch": 80, "ranks": ranks}
    trainer |= keys.get("trainer", {})
    if copies > 1:
        trainer["shard_ranks"] = ranks // copies
    return recipe(trainer=trainer, algorithm={"correction": "tis", **keys.get("algorithm", {})})


def learner(model: Path, r: Recipe, process_group: ProcessGroup | None) -> Learner:
    torch.manual_seed(0)
    load, more = partial(load_model, str(model), r, CPU), {"base_dir": model.parent, "rows_of": rows_of}
    return Learner(load, r, CPU, process_group, **more)


def rows_of(step: int) -> list[list[Rendered]]:
    """Of `algorithm.sft`: sequences of 6 to 30 tokens."""
    rng = np.random.default_rng(step)
    rows = [[Rendered(rng.integers(3, 200, int(length)).tolist(), [(4, int(length))])] for length in (6, 30, 14)]
    return [*rows[:2], [*rows[0], *rows[2]]]


def train(ours: Learner, batches: list[Any]) -> list[dict[str, float | None]]:
    return [report.metrics for report in reports(ours, batches)]


def reports(ours: Learner, batches: list[Any]) -> list[StepReport]:
    return [ours.step(batch, step, 0) for step, batch in batches]


def run_rank(rank: int, recipes: dict[str, Recipe], model: Path, folder: Path, rendezvous: Rendezvous) -> None:
    """What a test may ask of each case, in a file."""
    torch.set_num_threads(1)
    process_group = ProcessGroup.join(
        rendezvous, None, rank, next(iter(recipes.values())).trainer.ranks, CPU, DEADLINE_S
    )
    found = {case: run_case(r, process_group, model, folder / case) for case, r in recipes.items()}
    torch.save(found, folder / f"result_{rank}.pt")
    torch.distributed.destroy_process_group()


def run_case(r: Recipe, process_group: ProcessGroup, model: Path, folder: Path) -> dict[str, Any]:
    """Two steps, the state on disk, and the third step by new learners that read it."""
    first = learner(model, r, process_group)
    done = reports(first, list(enumerate(BATCHES))[:2])
    files.write(first.state(), folder, process_group.rank)
    torch.distributed.barrier()
    second = learner(model, r, process_group)
    second.restore(files.read(folder))
    done += reports(second, [(2, BATCHES[2])])
    staged = StagedWeights(second.weight_shards(), torch.float32, CPU)
    staged.copy()
    plans: list[Any] = [None] * process_group.size
    torch.distributed.all_gather_object(plans, staged.shards)
    source = StagedSource(plans, process_group.rank, process_group.sync_group)
    source.staged = staged
    gathered = {name: tensor.clone() for name, tensor in source}
    return {
        "metrics": [report.metrics for report in done],
        "gaps": [report.gaps for report in done],
        "score": second.score(TOKENS),
        "shards": staged.shards,
        "views": [view.clone() for view in staged.views],
        "gathered": gathered,
        "means": {name: mean.full_tensor() for name, mean in second.ema.means.items()} if second.ema else {},
    }


TWO, FOUR = (2, 1, tuple(CASES)), (4, 2, ("plain",))
STORED = (2, 1, ("plain", "reference", "critic", "adapters"))
"""Ranks, copies of the model among them, and what is tried."""


@cache
def results(ranks: int, copies: int, cases: tuple[str, ...], model: Path) -> list[dict[str, Any]]:
    """Of each rank, by case."""
    folder = Path(tempfile.mkdtemp(dir=model.parent))
    if not (model.parent / TEACHER).exists():
        make_tiny_llama(model.parent / TEACHER, seed=7)
    recipes = {case: recipe_of(case, ranks, copies) for case in cases}
    rendezvous, store = open_rendezvous("127.0.0.1", DEADLINE_S)
    multiprocessing.spawn(run_rank, args=(recipes, model, folder, rendezvous), nprocs=ranks)
    del store
    return [torch.load(folder / f"result_{rank}.pt", weights_only=False) for rank in range(ranks)]


@pytest.fixture(scope="module")
def stored_in_bf16(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("bf16")
    from_folder(str(tiny_model)).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", STORED[2])
def test_n_ranks_equal_one_of_a_model_stored_in_bf16(stored_in_bf16: Path, case: str) -> None:
    test_n_ranks_equal_one(stored_in_bf16, STORED, case)


@pytest.mark.parametrize(("setup", "case"), [(setup, case) for setup in (TWO, FOUR) for case in setup[2]])
def test_n_ranks_equal_one(tiny_model: Path, setup: tuple[int, int, tuple[str, ...]], case: str) -> None:
    found = results(*setup, tiny_model)
    alone = learner(tiny_model, recipe_of(case, 1), None)
    # In bf16 another order of a sum rounds otherwise, and how depends on the processor. A log-prob is rounded in each
    # of two layers and in the head; other figures are means of log-probs and of their ratios.
    bf16 = case in ("bf16", "fp16")
    loose = 4 * BF16 / 1e-3 if bf16 else 1
    whole = reports(alone, list(enumerate(BATCHES)))
    expected = [report.metrics for report in whole]
    for result in found:
        for ours, theirs in zip(result[case]["metrics"], expected, strict=True):
            assert ours.keys() == theirs.keys()
            for name in ours.keys() - {"trainer/step_s", "trainer/forward_tokens"}:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3 * loose, abs=1e-5 * loose), name
        score = alone.score(TOKENS)
        assert result[case]["score"] == pytest.approx(score, abs=3 * BF16 * max(map(abs, score)) if bf16 else 1e-4)
    # Each sampled trajectory passed on one rank; the other rank has nothing to say of it.
    for step, report in enumerate(whole):
        parts = [result[case]["gaps"][step] for result in found]
        assert sum(map(len, parts)) == len(report.gaps) > 0
        for number, gaps in (entry for part in parts for entry in part.items()):
            assert gaps == pytest.approx(report.gaps[number], rel=1e-2 * loose, abs=1e-3 * loose)
    # What the ranks would send makes up the weights, each element once.
    mine = [result[case] for result in found]
    weights = dict(assemble([part for r in mine for part in zip(r["shards"], r["views"], strict=True)]))
    trained = {name: p.detach() for name, p in alone.model.named_parameters() if p.requires_grad}
    assert weights.keys() == trained.keys()
    if alone.ema:
        for result in found:
            for name, mean in alone.ema.means.items():
                torch.testing.assert_close(result[case]["means"][name], mean, rtol=1e-3, atol=1e-4)
    # AdamW steps by the sign of a gradient whose size is rounding, and Muon turns matrices in bf16: single weights say
    # nothing, all together do.
    alike = bf16 or case == "muon"
    if alike:
        start = dict(learner(tiny_model, recipe_of(case, 1), None).model.named_parameters())
        off = sum(float((weights[name] - p).square().sum()) for name, p in trained.items()) ** 0.5
        moved = sum(float((start[name].detach() - p).square().sum()) for name, p in trained.items()) ** 0.5
        assert off < (32 if bf16 else 4) * BF16 * moved
    for name, tensor in weights.items():
        if not alike:
            torch.testing.assert_close(tensor, trained[name], rtol=1e-3, atol=1e-4)
        # As rank 0 hands them to vLLM's nccl engine.
        assert torch.equal(mine[0]["gathered"][name], tensor)
