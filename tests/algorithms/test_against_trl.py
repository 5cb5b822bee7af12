"""Where TRL's GRPOTrainer has the same loss: equality of value and gradient. Needs `trl`, which is no dependency:
`.venv/bin/pip install --no-deps trl`. Its loss is called with a stand-in for the trainer; the formulas are its own."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asyncrl.algorithms.aggregation import token_weights
from asyncrl.algorithms.kl import kl_estimate
from asyncrl.registry import LOSSES

pytest.importorskip("trl")

LOW, HIGH, LONGEST = 0.2, 0.28, 30
# TRL's loss_type and importance_sampling_level; our loss and aggregation.
SAME = {
    "grpo": ("grpo", "token", "ppo", "sequence"),
    "dr_grpo": ("dr_grpo", "token", "ppo", "constant"),
    "dapo": ("dapo", "token", "ppo", "token"),
    "gspo": ("grpo", "sequence", "gspo", "sequence"),
    "cispo": ("cispo", "token", "cispo", "token"),
}


def theirs(loss_type: str, level: str, rows: dict[str, Any], beta: float) -> torch.Tensor:
    from trl.trainer.grpo_trainer import GRPOTrainer

    arguments = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    same = {name: lambda x, **_: x for name in ("gather", "gather_for_metrics", "reduce")}
    # TRL clamps CISPO's weights at epsilon_high itself, and only from above.
    high = 1 + HIGH if loss_type == "cispo" else HIGH
    trainer = SimpleNamespace(
        args=arguments,
        accelerator=SimpleNamespace(num_processes=1, sync_gradients=True, **same),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        loss_type=loss_type,
        epsilon_low=LOW,
        epsilon_high=high,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        max_completion_length=LONGEST,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (rows["logprobs"], torch.zeros(rows["mask"].shape), None),
    )
    inputs = {
        "prompt_ids": torch.zeros(len(rows["mask"]), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(rows["mask"]), 1, dtype=torch.int64),
        "completion_ids": torch.zeros(rows["mask"].shape, dtype=torch.int64),
        "completion_mask": rows["mask"].long(),
        "advantages": rows["advantages"],
        "old_per_token_logps": rows["old"],
        "ref_per_token_logps": rows["reference"],
        "num_items_in_batch": rows["mask"].sum(),
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def ours(loss: str, aggregation: str, rows: dict[str, Any], beta: float) -> torch.Tensor:
    mask = rows["mask"]
    segments = torch.arange(len(mask))[:, None].expand(mask.shape)[mask]
    lengths = torch.bincount(segments, minlength=len(mask))
    logprobs, old, reference = (rows[name][mask] for name in ("logprobs", "old", "reference"))
    out = LOSSES[loss].load()(
        logprobs,
        old,
        old,
        rows["advantages"][segments],
        torch.ones_like(segments, dtype=torch.bool),
        segments=segments,
        num_segments=len(mask),
        clip_low=1.0 if loss == "cispo" else LOW,
        clip_high=HIGH,
    )
    weights = token_weights(
        segments,
        lengths,
        mode=aggregation,
        num_tokens=len(segments),
        num_sequences=len(mask),
        constant_length=LONGEST,
    )
    return ((out.per_token + beta * kl_estimate(logprobs, reference, "k3")) * weights).sum()


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("name", SAME)
def test_the_same_loss_and_gradient(name: str, beta: float) -> None:
    loss_type, level, loss, aggregation = SAME[name]
    random = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 7, LONGEST, 12, 3, 20])
    base = -2 * torch.rand(len(lengths), LONGEST, generator=random, dtype=torch.float64)

    def near(scale: float) -> torch.Tensor:
        return base + scale * torch.randn(base.shape, generator=random, dtype=torch.float64)

    rows = {
        "mask": torch.arange(LONGEST)[None] < lengths[:, None],
        "advantages": torch.randn(len(lengths), generator=random, dtype=torch.float64),
        "old": near(0.3),
        "reference": near(0.3),
    }
    found = []
    for compute in (lambda r: theirs(loss_type, level, r, beta), lambda r: ours(loss, aggregation, r, beta)):
        logprobs = base.clone().requires_grad_()
        value = compute({**rows, "logprobs": logprobs})
        value.backward()
        found.append((float(value), logprobs.grad))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-6, atol=1e-9)
