"""A whole run on answers that the data has, by `asyncrl sft`."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from test_run import asyncrl

pytestmark = pytest.mark.slow

RECIPE = """
model: random:tiny-llama
data: {path: rows.jsonl, max_tokens: 40}
groups_per_step: 3
max_steps: 4
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
