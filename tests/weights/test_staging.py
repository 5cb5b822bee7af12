"""The staged weights are a snapshot: every parameter once, in one dtype, apart from the model."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from asyncrl.errors import DeadlineExceeded, RunFailed
from asyncrl.trainer.sharding import weight_shards
from asyncrl.weights import staging
from asyncrl.weights.files import open_file
from asyncrl.weights.shards import assemble
from asyncrl.weights.staging import StagedWeights, Staging

CPU = torch.device("cpu")


class Tied(nn.Module):
    """An embedding whose weight is also the output head, and a layer of another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.layer = nn.Linear(3, 2, dtype=torch.bfloat16)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("steps", torch.zeros(4))


@pytest.fixture
def model() -> Tied:
    torch.manual_seed(0)
    return Tied()


def staged_copy(model: nn.Module, dtype: torch.dtype = torch.float32) -> StagedWeights:
    staged = StagedWeights(weight_shards(model), dtype, CPU)
    staged.copy()
    return staged


def test_every_parameter_once_under_its_first_name(model: Tied) -> None:
    staged = staged_copy(model)
    assert {shard.name: (shard.shape, shard.offset, shard.size) for shard in staged.shards} == {
        "scale": ((), (0,), (1,)),
        "embed.weight": ((5, 3), (0,), (15,)),
        "layer.weight": ((2, 3), (0,), (6,)),
        "layer.bias": ((2,), (0,), (2,)),
    }
    assert staged.flat.shape == (1 + 15 + 6 + 2,)


@pytest.mark.parametrize("shared", [False, True])
def test_values_are_those_of_the_model(model: Tied, tmp_path: Path, shared: bool) -> None:
    parameters = dict(model.named_parameters())
    staged = StagedWeights(weight_shards(model), torch.float32, CPU, tmp_path / "copy" if shared else None)
    staged.copy()
    for name, tensor in assemble(zip(staged.shards, staged.views, strict=True)):
        torch.testing.assert_close(tensor, parameters[name].detach().float(), rtol=0, atol=0)
    if shared:
        assert torch.equal(open_file(tmp_path / "copy", staged.flat.numel(), torch.float32), staged.flat)


def test_views_lie_in_the_flat_buffer_in_the_order_of_the_shards(model: Tied) -> None:
    staged = staged_copy(model)
    assert torch.equal(torch.cat(staged.views), staged.flat)
    staged.flat.fill_(7)
    assert all(bool((t == 7).all()) for t in staged.views)


def test_a_later_change_of_the_model_does_not_reach_the_copy(model: Tied) -> None:
    staged = staged_copy(model)
    before = staged.flat.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(staged.flat, before)
    staged.copy()
    assert not (staged.flat == before).any()


def test_an_optimizer_step_does_not_reach_the_copy(model: Tied) -> None:
    model.layer.float()
    staged = staged_copy(model)
    before = staged.flat.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    (model.head(model.embed.weight).sum() + model.layer(model.embed.weight).sum() + model.scale).backward()
    optimizer.step()
    assert torch.equal(staged.flat, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parameters_are_cast_as_torch_casts(model: Tied, dtype: torch.dtype) -> None:
    staged = staged_copy(model, dtype)
    parameters = dict(model.named_parameters())
    assert staged.flat.dtype == dtype
    for name, tensor in assemble(zip(staged.shards, staged.views, strict=True)):
        assert torch.equal(tensor, parameters[name].detach().to(dtype))


def test_the_copy_has_no_gradient_and_leaves_the_model_trainable(model: Tied) -> None:
    staged = staged_copy(model)
    assert not staged.flat.requires_grad
    assert all(not view.requires_grad for view in staged.views)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(model: Tied, bad: float) -> None:
    with torch.no_grad():
        model.layer.weight[1, 2] = bad
    with pytest.raises(RunFailed, match=r"the weights layer\.weight are not finite in torch\.float32"):
        staged_copy(model)


def test_a_weight_that_only_the_cast_makes_infinite_is_refused(model: Tied) -> None:
    with torch.no_grad():
        model.scale.fill_(1e6)
    assert staged_copy(model, torch.bfloat16).flat.isfinite().all()
    with pytest.raises(RunFailed, match=r"scale are not finite in torch\.float16"):
        staged_copy(model, torch.float16)


def test_infinities_of_both_signs_do_not_cancel(model: Tied) -> None:
    with torch.no_grad():
        model.embed.weight[0, 0], model.embed.weight[1, 0] = float("inf"), float("-inf")
    with pytest.raises(RunFailed, match=r"embed\.weight"):
        staged_copy(model)


# -- versions


class Steps:
    """A model whose one weight is its version."""

    def __init__(self, version: int) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        self.staging = Staging(weight_shards(self.model), version, torch.float32, CPU)
        self._set(version)

    def _set(self, version: int) -> None:
        with torch.no_grad():
            self.model.weight.fill_(version)
        self.staging.changed(version)

    def step(self, to: int, pushing: int = -1, deadline_s: float = 5.0) -> None:
        self.staging.before_change(pushing, deadline_s)
        self._set(to)

    def sent(self, version: int | None) -> tuple[int, float]:
        got, weights = self.staging.send(version)
        return got, weights.flat.item()


def test_a_push_gets_the_version_it_asks_for_though_the_next_step_has_ended_meanwhile() -> None:
    steps = Steps(46)
    assert steps.sent(46) == (46, 46.0)
    steps.step(47)
    # Version 47 is asked for only after the step that changes it was.
    steps.step(48)
    assert steps.sent(47) == (47, 47.0)
    assert steps.sent(48) == (48, 48.0)
    assert steps.sent(None) == (48, 48.0)


def test_what_is_sent_stays_while_steps_go_on() -> None:
    steps = Steps(0)
    _, sending = steps.staging.send(0)
    for version in range(1, 4):
        steps.step(version)
        assert sending.flat.item() == 0
    assert steps.sent(None) == (0, 0.0)
    with pytest.raises(RuntimeError, match="asked to publish version 1, but the weights are of 3"):
        steps.staging.send(1)


def test_a_step_waits_for_the_push_that_still_has_to_take_the_older_copy() -> None:
    steps = Steps(0)
    steps.sent(0)
    steps.step(1)
    steps.step(2)
    with pytest.raises(DeadlineExceeded, match="the push of version 1 did not take its copy"):
        steps.step(3, pushing=1, deadline_s=0.01)
    waiting = threading.Thread(target=steps.step, args=(3, 1))
    waiting.start()
    assert steps.sent(1) == (1, 1.0)
    waiting.join(5.0)
    assert not waiting.is_alive()
    assert steps.sent(2) == (2, 2.0)


@pytest.mark.parametrize("pushing", [0, 2])
def test_a_step_waits_for_no_push_that_has_its_copy_or_finds_it_staged(pushing: int) -> None:
    steps = Steps(0)
    steps.sent(0)
    steps.step(1)
    steps.step(2)
    steps.step(3, pushing, deadline_s=0.0)
    assert steps.sent(2) == (2, 2.0)


def test_a_later_push_lets_a_step_go_on_whose_push_never_came() -> None:
    steps = Steps(0)
    steps.sent(0)
    steps.step(1)
    steps.step(2)
    waiting = threading.Thread(target=steps.step, args=(3, 1))
    waiting.start()
    assert steps.sent(2) == (2, 2.0)
    waiting.join(5.0)
    assert not waiting.is_alive()


def test_a_copy_waits_for_what_the_gpu_was_given_to_do_before_the_version_was_called_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In whichever thread, so on whichever stream, it is made. No GPU here: its streams are played."""
    did: list[str] = []

    class Stream:
        def wait_event(self, event: str) -> None:
            did.append(f"wait for {event}")

    marks = iter(range(9))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(staging, "_mark", lambda device: f"mark {next(marks)}")
    monkeypatch.setattr(StagedWeights, "copy", lambda self: did.append("copy"))
    steps = Steps(0)
    steps.staging.send(0)
    steps.step(1)
    steps.step(2)
    steps.staging.send(2)
    assert did == ["wait for mark 1", "copy", "wait for mark 2", "copy", "wait for mark 3", "copy"]
