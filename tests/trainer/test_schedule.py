"""The learning rate: a function of the step that ends where the run does, whatever a step is made of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_learner import groups, learner, recipe

from asyncrl.recipe.schema import Recipe
from asyncrl.trainer.schedule import bent, learning_rate

FOUR = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.5], [0.0, 0.5]]


def of(max_steps: int = 10, **trainer: Any) -> Recipe:
    keys = {"precision": "fp32", "learning_rate": 1.0, "tokens_per_microbatch": 80, **trainer}
    return recipe(max_steps=max_steps, trainer=keys)


def curve(r: Recipe) -> list[float]:
    return [learning_rate(r, step) for step in range(r.max_steps)]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [1.0] * 10),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, *[1.0] * 7]),
        ({"schedule": "linear"}, [1 - step / 10 for step in range(10)]),
        ({"schedule": "linear", "warmup_steps": 2, "min_lr_ratio": 0.2}, [0.5, 1.0, *(1 - n / 10 for n in range(8))]),
        ({"schedule": "cosine", "warmup_steps": 5}, [0.2, 0.4, 0.6, 0.8, 1, 1, 0.904508, 0.654508, 0.345492, 0.095492]),
        ({"schedule": "wsd", "decay_steps": 4, "warmup_steps": 2}, [0.5, *[1.0] * 6, 0.75, 0.5, 0.25]),
        ({"schedule": "wsd"}, [1.0] * 10),
        ({"schedule": "wsd", "decay_steps": 2, "min_lr_ratio": 0.5}, [*[1.0] * 9, 0.75]),
    ],
)
def test_curves(keys: dict[str, Any], expected: list[float]) -> None:
    assert curve(of(**keys)) == pytest.approx(expected, abs=1e-6)
    # What it falls to is reached at the end of the last step.
    end = learning_rate(of(**keys), 10)
    assert end == pytest.approx(keys.get("min_lr_ratio", 0.0) if "schedule" in keys else 1.0)
    assert learning_rate(of(**keys), 1000) == end


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_curve_is_the_literature_s(schedule: str) -> None:
    """transformers' after the warm-up, which begins there at 0 instead of one step later."""
    from transformers import get_scheduler

    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=3, num_training_steps=12)
    found = []
    for _ in range(12):
        found.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert curve(of(12, schedule=schedule, warmup_steps=3))[3:] == pytest.approx(found[3:])


@pytest.mark.parametrize(
    "steps", [{}, {"minibatches": 2, "epochs": 2}, {"tokens_per_microbatch": 60, "minibatches": 2}]
)
def test_a_training_step_is_one_tick_whatever_it_is_made_of(tiny_model: Path, steps: dict[str, int]) -> None:
    """Several mini-batches, passes and micro-batches do not end it early; the metric is the rate of every update."""
    ours = learner(tiny_model, of(4, learning_rate=1e-3, schedule="linear", warmup_steps=1, **steps))
    used: list[float] = []
    step_ = ours.optimizer.step
    ours.optimizer.step = lambda rate: (used.append(rate), step_(rate))[1]  # type: ignore[method-assign]
    logged = [ours.step(groups(1, FOUR), step, 0).metrics["trainer/learning_rate"] for step in range(4)]
    updates = steps.get("minibatches", 1) * steps.get("epochs", 1)
    assert logged == pytest.approx([1e-3, 1e-3, 1e-3 * 2 / 3, 1e-3 / 3])
    assert used == [rate for rate in logged for _ in range(updates)]
    assert all(group["lr"] == logged[-1] for group in ours.optimizer.optimizers[0].param_groups)


@pytest.mark.parametrize("stop", [2, 5])
def test_a_resume_within_and_after_the_warm_up_goes_on_with_the_curve(tiny_model: Path, stop: int) -> None:
    r = of(7, learning_rate=1e-3, schedule="cosine", warmup_steps=3)
    batches = [groups(seed, FOUR[:2]) for seed in range(7)]
    whole, first, second = (learner(tiny_model, r) for _ in range(3))
    rates = [whole.step(batch, step, 0).metrics["trainer/learning_rate"] for step, batch in enumerate(batches)]
    ours = [first.step(batches[step], step, 0).metrics["trainer/learning_rate"] for step in range(stop)]
    second.restore(first.state())
    ours += [second.step(batches[step], step, 0).metrics["trainer/learning_rate"] for step in range(stop, 7)]
    assert ours == rates
    theirs = whole.state()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in second.state().items())


def test_another_end_of_the_run_bends_what_falls_and_nothing_else() -> None:
    def changed(done: int, **keys: Any) -> dict[str, tuple[int, int]]:
        return bent(of(10, **keys), of(20, **keys), done)

    said = {"trainer.schedule's max_steps": (10, 20)}
    assert changed(10, schedule="linear") == changed(5, schedule="cosine") == said
    assert changed(10) == changed(10, warmup_steps=4) == {}
    # The point of wsd: before the decay begins a run may be made longer.
    assert changed(9, schedule="wsd", decay_steps=1) == {}
    assert changed(9, schedule="wsd", decay_steps=4) == said
    assert changed(2, schedule="cosine", warmup_steps=3) == {}
    assert bent(of(schedule="linear"), of(schedule="linear", learning_rate=0.5), 5) == {}
    assert math.isclose(learning_rate(of(20, schedule="linear"), 10), 0.5)
