"""Rollouts of several trajectories: one reward, one advantage, one say in every mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_learner import groups, learner, of, recipe

from asyncrl.rollout.trajectory import Group, Trajectory


def cut_in_two(whole: Trajectory, at: int, member: int) -> list[Trajectory]:
    """The same sampled tokens, as two calls of one rollout of which the second reads the first's as its prompt."""
    first = {name: getattr(whole, name)[:at] for name in ("tokens", "versions", "logprobs", "loss_mask")}
    versions, mask = whole.versions.copy(), whole.loss_mask.copy()
    versions[:at], mask[:at] = -1, False
    return [
        replace(whole, **first, member=member),
        replace(whole, versions=versions, loss_mask=mask, member=member, prompt=at),
    ]


def parted(group: Group) -> Group:
    """Each rollout that has two sampled tokens as two trajectories."""
    made: list[Trajectory] = []
    for member, whole in enumerate(group.trajectories):
        at = whole.prompt_length + 1
        made += cut_in_two(whole, at, member) if at < len(whole.tokens) else [replace(whole, member=member)]
    return replace(group, trajectories=tuple(made))


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_the_same_tokens_in_more_trajectories_have_the_same_gradient(tiny_model: Path, aggregation: str) -> None:
    rewards: list[list[float | None]] = [[1.0, 0.0, 0.5], [0.0, None, 1.0]]
    gradients = []
    for batch in (groups(3, rewards), [parted(group) for group in groups(3, rewards)]):
        ours = learner(tiny_model, recipe(algorithm={"aggregation": aggregation}))
        report = ours.step(batch, 0, 0)
        gradients.append([parameter.grad for parameter in ours.model.parameters()])
    assert report.tokens_trained == sum(int(t.loss_mask.sum()) for g in groups(3, rewards) for t in g.trajectories)
    for whole, several in zip(*gradients, strict=True):
        torch.testing.assert_close(several, whole, rtol=1e-4, atol=1e-6)


def test_a_group_compares_rollouts_however_many_trajectories_they_have(tiny_model: Path) -> None:
    """Five calls against one: the mean of the rewards is that of two rollouts, not of six."""
    (group,) = groups(5, [[1.0, 0.0]])
    long, short = group.trajectories
    members = [replace(long, member=0)] * 5 + [replace(short, member=1)]
    ours = learner(tiny_model, recipe(algorithm={"advantage": "dr_grpo"}))
    samples = of(ours, [replace(group, trajectories=tuple(members))])
    assert [s.advantage for s in samples] == pytest.approx([0.5] * 5 + [-0.5])
    assert [s.share for s in samples] == pytest.approx([0.2] * 5 + [1.0])
    assert ours._updates(samples)[0].counts.num_sequences == 2


def test_rollouts_without_a_reward_are_left_out_and_the_others_compared(tiny_model: Path) -> None:
    """[1, 0, None, 1] has the mean 2/3; a group of which all have none is left out as a whole."""
    ours = learner(tiny_model, recipe(algorithm={"advantage": "dr_grpo"}))
    samples = of(ours, groups(5, [[1.0, 0.0, None, 1.0], [None, None, None, None]]))
    assert [s.reward for s in samples] == [1.0, 0.0, 1.0]
    assert [s.advantage for s in samples] == pytest.approx([1 / 3, -2 / 3, 1 / 3])
    assert {s.group for s in samples} == {0}


def test_a_rollout_that_was_cut_off_is_left_out_as_a_whole(tiny_model: Path) -> None:
    (group,) = groups(5, [[1.0, 0.0, 0.5]])
    members = cut_in_two(group.trajectories[0], group.trajectories[0].prompt_length + 1, 0)
    members[1] = replace(members[1], finish_reason="length")
    others = [replace(t, member=1 + i) for i, t in enumerate(group.trajectories[1:])]
    ours = learner(tiny_model, recipe(algorithm={"mask_truncated": True}))
    report = ours.step([replace(group, trajectories=(*members, *others))], 0, 0)
    assert report.metrics["trainer/masked_truncated"] == 2
    assert report.tokens_trained == sum(int(t.loss_mask.sum()) for t in others)


def test_observed_tokens_between_turns_are_read_and_not_trained(tiny_model: Path) -> None:
    """A trajectory with a gap, against one whose gap's loss is taken away by hand: the same weights afterwards."""
    (group,) = groups(11, [[1.0, 0.0]])
    turns = []
    for whole in group.trajectories:
        versions, mask = (
            np.append(whole.versions, [-1, -1, 0, 0]),
            np.append(whole.loss_mask, [False, False, True, True]),
        )
        turns.append(
            replace(
                whole,
                tokens=np.append(whole.tokens, [9, 8, 7, 6]).astype(np.int32),
                versions=versions.astype(np.int32),
                logprobs=np.append(whole.logprobs, [0, 0, -5, -5]).astype(np.float32),
                loss_mask=mask,
            )
        )
    ours = learner(tiny_model)
    samples = of(ours, [replace(group, trajectories=tuple(turns))])
    packed = ours._updates(samples)[0].batches[0]
    trained = [int(t.loss_mask.sum()) for t in turns]
    assert len(packed.targets) == sum(trained)
    assert sorted(packed.targets.tolist()) == sorted(int(x) for t in turns for x in t.tokens[t.loss_mask])
    assert not {9, 8} & {int(x) for t in turns for x in t.tokens[t.loss_mask][-2:]}


def test_agents_are_compared_with_those_of_their_name(tiny_model: Path) -> None:
    """Solvers 1 and 0, judges 5 and 7: each mean is that of its own kind, and each counts as a rollout."""
    (group,) = groups(5, [[1.0, 0.0, 5.0, 7.0]])
    agents = ("", "", "judge", "judge")
    members = [
        replace(t, member=i % 2, agent=a) for i, (t, a) in enumerate(zip(group.trajectories, agents, strict=True))
    ]
    ours = learner(tiny_model, recipe(algorithm={"advantage": "dr_grpo"}))
    samples = of(ours, [replace(group, trajectories=tuple(members))])
    assert {(s.trajectory.agent, s.reward): s.advantage for s in samples} == pytest.approx(
        {("", 1.0): 0.5, ("", 0.0): -0.5, ("judge", 5.0): -1.0, ("judge", 7.0): 1.0}
    )
    assert ours._updates(samples)[0].counts.num_sequences == 4
