"""A whole run on answers that the data has, by `asyncrl sft`."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path

import pytest
import torch
from command import ROOT
from safetensors.torch import load_file
from test_run import asyncrl, kill_group, records

from asyncrl.recipe.load import load

pytestmark = pytest.mark.slow

RECIPE = """
model: random:tiny-llama
data: {path: rows.jsonl, max_tokens: 40}
groups_per_step: 3
max_epochs: 2
trainer: {learning_rate: 1.0e-3, precision: fp32, tokens_per_microbatch: 64}
checkpoint: {every_steps: 2}
track: {wandb: "off", tensorboard: false}
"""


def test_a_run_that_samples_nothing(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} + 1 = ", "completion": str(n + 1)} for n in range(5)]
    rows.append({"prompt": "a", "completion": "b" * 90})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "warm.yaml").write_text(RECIPE)
    run = tmp_path / "run"
    code, output = asyncrl("sft", str(tmp_path / "warm.yaml"), f"run_dir={run}")
    assert code == 0, output
    assert re.search(r"1 of 6 rows are left out: 1\s+row_too_long", output)
    assert "max_steps is 4: max_epochs 2 of 5 rows, 3 a step" in output
    assert load(run / "recipe.yaml").max_steps == 4
    lines = [line for line in output.splitlines() if "/4  " in line]
    assert len(lines) == 4
    assert all("perplexity" in line and "reward" not in line for line in lines)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        assert record["trainer/loss"] == pytest.approx(record["sft/nll"], rel=1e-4)
        assert record["sft/perplexity"] == pytest.approx(math.exp(record["sft/nll"]))
        assert (record["reward/mean"], record["tokens/trained"]) == (None, 6)
    assert records[-1]["trainer/loss"] < records[0]["trainer/loss"]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["ledger"]["trained"], summary["ledger"]["filtered"]) == (12, 0)
    assert [(source["rows"], source["left_out"]) for source in summary["data"]] == [(6, {"row_too_long": 1})]
    assert records[-1]["data/epoch"] == 12 / 5
    [first, *_] = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert first["completion"] == "".join(first["tokens"])
    assert first["completion"].endswith("</s>")
    assert (run / "checkpoints/step_000004/model/model.safetensors").exists()


BESIDE = """
base: {tiny}
rollout: {{engine: simulated, engine_args: {{token_s: 0.01}}}}
max_steps: 4
algorithm:
  loss: reinforce
  sft: {{data: {{path: rows.jsonl}}, rows_per_step: 2}}
trainer: {{ema: 0.5}}
track: {{wandb: "off", tensorboard: false}}
"""


def test_demonstrations_beside_what_is_sampled_come_out_the_same_in_a_replay(tmp_path: Path) -> None:
    """Of a run that was killed between two checkpoints, too."""
    rows = [{"prompt": f"{n} + 1 = ", "completion": str(n + 1)} for n in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mixed.yaml").write_text(BESIDE.format(tiny=ROOT / "recipes/tiny.yaml"))
    run = tmp_path / "run"
    first = asyncrl("train", str(tmp_path / "mixed.yaml"), f"run_dir={run}", "max_steps=40", background=True)
    while first.poll() is None and len(records(run)) < 3:
        time.sleep(0.05)
    kill_group(first)
    done = len(records(run))
    code, output = asyncrl("resume", str(run), f"max_steps={done + 3}")
    assert code == 0, output
    found = records(run)
    assert [record["step"] for record in found] == [*range(done + 3)]
    assert all(record["sft/rows"] == 2 for record in found)
    assert found[-1]["sft/nll"] < found[0]["sft/nll"]
    assert "sft nll" in output
    code, output = asyncrl("replay", str(run), "--verify")
    assert code == 0, output
    assert "bit for bit" in output
    newest = max((run / "checkpoints").iterdir())
    model, mean = (load_file(newest / name / "model.safetensors") for name in ("model", "model_ema"))
    assert model.keys() == mean.keys()
    assert not torch.equal(model["model.norm.weight"], mean["model.norm.weight"])
