"""Trajectories sampled token by token, with weights and KV caches that are known: which stamps are called wrong."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, DynamicCache

from asyncrl.buffer.log import JournalWriter
from asyncrl.buffer.records import GROUP, GROUPS_STREAM
from asyncrl.errors import UserError
from asyncrl.orchestrator.stamps import check
from asyncrl.rollout.trajectory import Group, Trajectory, encode

ROOT = Path(__file__).resolve().parents[2]
PROMPT = list(range(5, 45))


@pytest.fixture(scope="module")
def models(tiny_model: Path) -> list[Any]:
    """Three versions."""
    models = []
    for version in range(3):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        generator = torch.Generator().manual_seed(version)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * version * torch.randn(parameter.shape, generator=generator)
        models.append(model)
    return models


@torch.no_grad()
def sample(
    models: list[Any],
    versions: list[int],
    *,
    stamped: list[int] | None = None,
    again: int = 0,
    stale: int | None = None,
) -> Trajectory:
    """As an engine does it: a token a pass, by these versions. The `again`-th token reads all before it again; `stale`:
    the version that the first 32 tokens of the prompt were read by."""
    tokens, logprobs, cache = list(PROMPT), [0.0] * len(PROMPT), DynamicCache()
    torch.manual_seed(0)
    if stale is not None:
        models[stale](torch.tensor([PROMPT[:32]]), past_key_values=cache, use_cache=True)
    for n, version in enumerate(versions):
        if again and n == again:
            cache = DynamicCache()
        new = torch.tensor([tokens[cache.get_seq_length() :]])
        logits = models[version](new, past_key_values=cache, use_cache=True).logits[0, -1]
        distribution = torch.log_softmax(logits / 0.8, -1)
        tokens.append(int(torch.multinomial(distribution.exp(), 1)))
        logprobs.append(float(distribution[tokens[-1]]))
    stamps = np.array([-1] * len(PROMPT) + (stamped or versions), np.int32)
    return Trajectory(np.array(tokens, np.int32), stamps, np.array(logprobs, np.float32), stamps >= 0, 1.0, "length")


@pytest.fixture(scope="module")
def run_dir(tiny_model: Path, models: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One group; its members from the fourth on are stamped wrong."""
    run_dir = tmp_path_factory.mktemp("run")
    recipe = {"model": str(tiny_model), "data": {"path": "x"}, "reward": "x", "max_steps": 2}
    recipe |= {"rollout": {"temperature": 0.8}, "weights": {"dtype": "float32"}}
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for version in (1, 2):
        folder = run_dir / "checkpoints" / f"step_{version:06d}"
        models[version].save_pretrained(folder / "model")
        (folder / "COMPLETE").touch()
    trajectories = (
        sample(models, [1] * 12),
        sample(models, [0] * 8 + [1] * 8 + [2] * 8),
        sample(models, [0] * 8 + [1] * 12, again=13),
        sample(models, [1] * 12, stale=0),
        sample(models, [0] * 12, stamped=[1] * 12),
        sample(models, [0] * 11 + [1] * 5, stamped=[0] * 5 + [1] * 11),
    )
    writer = JournalWriter(run_dir / "journal", GROUPS_STREAM)
    writer.append(GROUP, encode(Group(7, 1, 3, trajectories)))
    writer.close()
    return run_dir


def test_a_wrong_stamp_is_told_from_a_kept_and_a_recomputed_cache(run_dir: Path) -> None:
    scored = sorted(check(run_dir), key=lambda one: one.member)
    assert [one.wrong for one in scored] == [False] * 3 + [True] * 3
    assert all(one.told for one in scored)
    assert all(one.gap < 1e-6 for one in scored[:3])
    assert all(one.gap > 1e-3 for one in scored[3:])
    assert [one.fits for one in scored[3:]] == [(), (0,), ()]


def test_the_script(run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["check_stamps", str(run_dir)])
    assert runpy.run_path(str(ROOT / "scripts/check_stamps"))["main"]() == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"task 7.{member} (attempt 1)" for member in (5, 3, 4)]
    assert lines[0].endswith("no version alone fits it")
    assert lines[2].endswith("WRONG, it fits version 0")
    figures = json.loads(last)
    assert (figures["trajectories"], figures["several_versions"], figures["wrong"]) == (6, 3, 3)


def test_weights_that_are_gone_are_named(run_dir: Path) -> None:
    complete = run_dir / "checkpoints/step_000001/COMPLETE"
    complete.unlink()
    try:
        with pytest.raises(UserError, match="the weights of version 1 are gone; keep those of every version with"):
            list(check(run_dir))
    finally:
        complete.touch()
