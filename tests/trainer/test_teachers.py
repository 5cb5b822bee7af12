"""Teachers: what they say of sampled tokens against an unmodified model, and what the learner makes of that."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_learner import CPU, groups, of, recipe
from transformers import AutoModelForCausalLM

from asyncrl.algorithms import logprobs
from asyncrl.algorithms.advantages import less_divergence
from asyncrl.checkpoint import files
from asyncrl.errors import UserError
from asyncrl.models import make_tiny_llama
from asyncrl.recipe.schema import Recipe
from asyncrl.recipe.teacher import TeacherRecipe
from asyncrl.rollout.trajectory import Group, Trajectory, decode, encode
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.model import load_model, trained_shapes
from asyncrl.trainer.packing import PackedBatch, pack
from asyncrl.trainer.teachers import Teachers

TRAINER = {"precision": "fp32", "learning_rate": 1e-2, "tokens_per_microbatch": 80, "max_grad_norm": 1e9}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharper(make_tiny_llama(tmp_path_factory.mktemp("teacher"), seed=7))


def sharper(folder: Path) -> Path:
    """A random model whose choices are not nearly even."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 4
    model.save_pretrained(folder)
    return folder


def taught(teacher: Path | list[dict[str, str]], **changes: Any) -> Recipe:
    algorithm = {"teacher": [*teacher] if isinstance(teacher, list) else str(teacher), "loss": "reinforce"}
    algorithm |= changes.pop("algorithm", {})
    return recipe(**{"reward": None, "trainer": TRAINER, "algorithm": algorithm, **changes})


def learner(model: Path, r: Recipe) -> Learner:
    return Learner(partial(load_model, str(model), r, CPU), r, CPU)


def unrewarded(seed: int) -> list[Group]:
    return groups(seed, [[0.0, 0.0, 0.0], [0.0, 0.0], [0.0, None, 0.0]])


def packed(ours: Learner, batch: list[Group]) -> PackedBatch:
    return pack(of(ours, batch), CPU)


def plain_logprobs(model: Any, t: Trajectory, temperature: float) -> torch.Tensor:
    """Of tokens[1:], by a pass over one trajectory whose logits are all there."""
    ids = torch.tensor(t.tokens, dtype=torch.int64)
    logits = model(input_ids=ids[None]).logits[0] / temperature
    return torch.log_softmax(logits[:-1], -1).gather(-1, ids[1:, None])[:, 0]


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_it_says_is_of_the_sampling_temperature(tiny_model: Path, teacher: Path, temperature: float) -> None:
    ours = learner(tiny_model, taught(teacher, rollout={"temperature": temperature, "max_new_tokens": 20}))
    batch = packed(ours, unrewarded(1))
    assert ours.teachers is not None
    said = ours.teachers.logprobs(batch, ours.recipe.rollout.temperature)
    model = plain(teacher)
    expected = [plain_logprobs(model, s.trajectory, temperature)[torch.tensor(s.mask[1:])] for s in batch.samples]
    torch.testing.assert_close(said, torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("edge", [3, 64])
def test_in_chunks_it_says_what_it_says_at_once(
    tiny_model: Path, teacher: Path, edge: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = learner(tiny_model, taught(teacher))
    assert ours.teachers is not None
    batch = packed(ours, unrewarded(1))
    at_once = ours.teachers.logprobs(batch, 0.8)
    monkeypatch.setitem(logprobs._EDGE, "cpu", edge)
    torch.testing.assert_close(ours.teachers.logprobs(batch, 0.8), at_once, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", ["advantage", "loss"])
@pytest.mark.parametrize("coef", [1.0, 0.25])
def test_the_gradient_equals_a_plain_loop(tiny_model: Path, teacher: Path, where: str, coef: float) -> None:
    """Beside a reward: the tokens' advantage less coef (log pi_sampler - log pi_teacher), or coef d^2/2 in the loss."""
    batch = groups(1, [[1.0, 0.0, 0.25], [1.0, 1.0], [0.0, None, 1.0, 0.0]])
    r = taught(teacher, reward="x", algorithm={"teacher_coef": coef, "teacher_in": where})
    ours = learner(tiny_model, r)
    report = ours.step(batch, 0, 0)
    student, other = plain(tiny_model), plain(teacher)
    trained = [t for g in batch for t in g.trajectories if t.reward is not None]
    num_tokens, gaps = sum(int(t.loss_mask.sum()) for t in trained), []
    for group in batch:
        rewards = np.array([t.reward for t in group.trajectories if t.reward is not None])
        for t in (t for t in group.trajectories if t.reward is not None):
            mask = torch.tensor(t.loss_mask[1:])
            now = plain_logprobs(student, t, 0.8)
            said = plain_logprobs(other, t, 0.8).detach()
            behaviour = torch.tensor(t.logprobs[1:])
            gaps += (behaviour - said)[mask].tolist()
            advantage = (t.reward - rewards.mean()) / (rewards.std() + 1e-6)
            per_token = -(advantage - coef * (behaviour - said)) * now
            if where == "loss":
                per_token = -advantage * now + coef * (now - said).square() / 2
            (per_token[mask].sum() / num_tokens).backward()
    for (name, parameter), expected in zip(ours.model.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert report.metrics["distil/kl"] == pytest.approx(np.mean(gaps), rel=1e-4)
    assert report.metrics["distil/taught_share"] == 1.0


def test_a_teacher_is_never_trained_and_never_saved(tiny_model: Path, teacher: Path) -> None:
    ours = learner(tiny_model, taught(teacher))
    assert ours.teachers is not None
    theirs = list(ours.teachers.policies[0].parameters())
    before = [p.clone() for p in theirs]
    ours.step(unrewarded(1), 0, 0)
    assert all(p.grad is None and not p.requires_grad for p in theirs)
    assert all(torch.equal(p, old) for p, old in zip(theirs, before, strict=True))
    assert {id(p) for p in theirs}.isdisjoint(id(t) for t in ours.state().values())
    untaught = learner(tiny_model, recipe(trainer=TRAINER))
    untaught.step(groups(1, [[1.0, 0.0]]), 0, 0)
    assert ours.state().keys() == untaught.state().keys()


def test_a_resumed_run_goes_on_bit_for_bit(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    first = learner(tiny_model, taught(teacher))
    first.step(unrewarded(1), 0, 0)
    files.write(first.state(), tmp_path, 0)
    second = learner(tiny_model, taught(teacher))
    second.restore(files.read(tmp_path))
    for ours in (first, second):
        ours.step(unrewarded(2), 1, 0)
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_adapters_are_drawn_to_a_teacher_that_has_none(tiny_model: Path, teacher: Path) -> None:
    ours = learner(tiny_model, taught(teacher, trainer={**TRAINER, "lora": {"rank": 2}}))
    full = learner(tiny_model, taught(teacher))
    assert ours.teachers is not None
    assert full.teachers is not None
    assert not any("lora" in name for name, _ in ours.teachers.policies[0].named_parameters())
    batch = packed(ours, unrewarded(1))
    torch.testing.assert_close(ours.teachers.logprobs(batch, 1.0), full.teachers.logprobs(batch, 1.0))
    report = ours.step(unrewarded(1), 0, 0)
    assert (report.metrics["trainer/grad_norm"] or 0) > 0


def test_each_source_has_its_teacher(tiny_model: Path, teacher: Path) -> None:
    of_b = [{"model": str(teacher), "source": "b"}]
    everyone = [*of_b, {"model": str(tiny_model)}]
    sources = ["a", "b", "c"]
    data = [{"path": f"{name}.jsonl", "name": name} for name in sources]
    batch = [replace(decode(encode(g)), source=name) for g, name in zip(unrewarded(1), sources, strict=True)]
    batch = [decode(encode(group)) for group in batch]  # the name travels with the frame
    some, all_of_them = (learner(tiny_model, taught(t, data=data, reward="x")) for t in (of_b, everyone))
    assert some.teachers is not None
    assert all_of_them.teachers is not None
    rows = packed(some, batch)
    is_b = torch.tensor([s.source == "b" for s in rows.samples])[rows.segments]
    said, of_all = some.teachers.logprobs(rows, 1.0), all_of_them.teachers.logprobs(rows, 1.0)
    assert torch.equal(~said.isnan(), is_b)
    torch.testing.assert_close(of_all[is_b], said[is_b])
    torch.testing.assert_close(of_all[~is_b], some.policy(rows, 1.0)[0].detach()[~is_b], rtol=1e-5, atol=1e-5)
    for where in ("advantage", "loss"):
        ours = learner(tiny_model, taught(of_b, data=data, reward="x", algorithm={"teacher_in": where}))
        report = ours.step(batch, 0, 0)
        assert report.metrics["distil/taught_share"] == pytest.approx(float(is_b.float().mean()))
        assert np.isfinite(report.metrics["trainer/grad_norm"])
        assert report.metrics["trainer/skipped_steps"] == 0


def of_width(folder: Path, source: Path, width: int) -> Path:
    """The model with so many embeddings: padding that is likely, or fewer than the tokenizer has tokens."""
    model = AutoModelForCausalLM.from_pretrained(source)
    old = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(width, mean_resizing=False)
    with torch.no_grad():
        number = min(width, len(old))
        model.get_input_embeddings().weight[:number] = old[:number]
        model.get_input_embeddings().weight[number:] = old[3]
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == width
    return folder


def test_what_its_head_has_beyond_the_vocabulary_is_left_out(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    padded = of_width(tmp_path / "padded", teacher, 320)
    exact, ours = (learner(tiny_model, taught(t)) for t in (teacher, padded))
    assert exact.teachers is not None
    assert ours.teachers is not None
    batch = packed(ours, unrewarded(1))
    torch.testing.assert_close(ours.teachers.logprobs(batch, 1.0), exact.teachers.logprobs(batch, 1.0))


def test_of_tokens_that_it_does_not_have_it_says_nothing(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    """A student whose padding was sampled: that trajectory alone is not taught."""
    narrow = of_width(tmp_path / "narrow", teacher, 196)
    ours = learner(tiny_model, taught(narrow))
    assert ours.teachers is not None
    batch = packed(ours, unrewarded(1))
    lacks = torch.tensor([bool((s.trajectory.tokens >= 196).any()) for s in batch.samples])
    assert lacks.any()
    assert not lacks.all()
    assert torch.equal(ours.teachers.logprobs(batch, 1.0).isnan(), lacks[batch.segments])
    report = ours.step(unrewarded(1), 0, 0)
    assert 0 < (report.metrics["distil/taught_share"] or 0) < 1
    assert np.isfinite(report.metrics["trainer/grad_norm"])


def test_one_that_cannot_follow_prefix_trees_is_refused(tiny_model: Path, teacher: Path) -> None:
    ours = learner(tiny_model, recipe())
    with pytest.raises(UserError, match=r"algorithm\.teacher x is of a kind .* whose attention cannot follow"):
        Teachers([TeacherRecipe(model="x")], lambda _: plain(teacher), ours._frozen, ours.model, ask_all=False)


def test_one_that_lacks_a_tensor_is_refused_before_anything_starts(tiny_model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    assert trained_shapes(str(tiny_model), taught(tiny_model))
    with pytest.raises(UserError, match=r"the tensors of .*broken are not those of .* lacks model\.norm\.weight"):
        trained_shapes(str(tiny_model), taught(broken))


def test_less_divergence() -> None:
    advantages, nan = torch.tensor([1.0, 0.0, 0.5]), float("nan")
    found = less_divergence(advantages, torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-3.0, -0.5, nan]), 0.5)
    assert found.tolist() == [0.0, 0.75, 0.5]


@pytest.mark.parametrize("where", ["advantage", "loss"])
def test_on_policy_the_gradient_is_that_of_the_reverse_kl(tiny_model: Path, teacher: Path, where: str) -> None:
    """Of one next token: thousands of samples against the sum over the whole vocabulary."""
    trainer = {**TRAINER, "tokens_per_microbatch": 2**15}
    ours = learner(tiny_model, taught(teacher, trainer=trainer, algorithm={"teacher_in": where}, rollout={}))
    prompt, number = [5, 200, 31], 4096
    student, other = plain(tiny_model), plain(teacher)
    log_p, log_q = (m(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for m in (student, other))
    torch.manual_seed(0)
    drawn = torch.multinomial(log_p.detach().exp(), number, replacement=True)
    of_tokens = [one_token(prompt, token, float(log_p[token].detach())) for token in drawn.tolist()]
    report = ours.step([Group(0, 0, 0, tuple(of_tokens))], 0, 0)
    exact = (log_p.exp() * (log_p - log_q.detach())).sum()
    exact.backward()
    assert report.metrics["distil/kl"] == pytest.approx(float(exact.detach()), rel=0.05)
    found, expected = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (ours.model, student))
    assert torch.cosine_similarity(found, expected, dim=0) > 0.9
    assert float(found.norm()) == pytest.approx(float(expected.norm()), rel=0.1)


def one_token(prompt: list[int], token: int, logprob: float) -> Trajectory:
    tokens, said = np.array([*prompt, token], np.int32), np.zeros(len(prompt) + 1, np.float32)
    versions = np.full(len(tokens), -1, np.int32)
    versions[-1], said[-1] = 0, logprob
    return Trajectory(tokens, versions, said, versions >= 0, 0.0, "stop")
