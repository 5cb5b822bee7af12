"""Which version is evaluated when; what a score counts; who waits for it. The generators are made up here; real ones
are in test_run.py, and those that die in test_interleavings.py."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from asyncrl.data.held_out import HeldOut
from asyncrl.orchestrator.early_stop import reason
from asyncrl.orchestrator.evaluations import Evaluations
from asyncrl.orchestrator.stop import Stop
from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.recipe.evaluation import EarlyStopRecipe
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.evaluation import TaskScores
from asyncrl.task import Task

Answer = Callable[[Task], TaskScores]
LIVE = -1


def recipe_of(**part: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": "x",
            "data": {"path": "x"},
            "reward": "x",
            "group_size": 2,
            "groups_per_step": 2,
            "max_steps": 25,
            "eval": {"data": {"path": "held/out.jsonl"}, "every_steps": 10, **part},
        }
    )


def scored(task: Task, rewards: list[float | None], version: int = LIVE) -> TaskScores:
    errors = ["KeyError: gold"] * rewards.count(None)
    texts = ["text"] * len(rewards)
    extras, lengths = [{} for _ in rewards], [4] * len(rewards)
    return TaskScores(task.row_index, "?", texts, rewards, extras, errors, lengths, [True] * len(rewards), {version: 4})


class Run:
    """Evaluations with generators that answer by `answer`, `delay_s` later."""

    def __init__(self, run_dir: Path, answer: Answer, num_tasks: int = 5, delay_s: float = 0.0, **part: Any) -> None:
        self.recipe, self.figures, self.stops, self.num_ended = recipe_of(**part), [], [], 0
        self.serving = {"a": SimpleNamespace(evaluate=SimpleNamespace(remote=self._evaluate))}
        self.asked: list[int] = []
        self._answer, self._delay_s = answer, delay_s
        tasks = SimpleNamespace(task=lambda number: Task(number, number, f"task {number}", {}))
        self.evaluations = Evaluations(
            self.recipe,
            [HeldOut(part, tasks, num_tasks) for part in self.recipe.eval],
            run_dir,
            WaitingFor(60.0),
            lambda: self.serving,
            lambda name, handle, error: self.serving.pop(name),
            self.figures.append,
            self._ended,
        )
        self.run_dir = run_dir
        run_dir.mkdir(exist_ok=True)

    def _ended(self, stop: Stop | None) -> None:
        self.num_ended += stop is None
        self.stops += [stop.why] if stop else []

    async def _evaluate(self, name: str, task: Task) -> TaskScores:
        self.asked.append(task.number)
        await asyncio.sleep(self._delay_s)
        answer = self._answer(task)
        return replace(answer, versions={self.version if v == LIVE else v: n for v, n in answer.versions.items()})

    async def live(self, version: int) -> None:
        self.version = version
        await asyncio.gather(*self.evaluations.live(version))

    @property
    def lines(self) -> list[dict[str, Any]]:
        path = self.run_dir / "evaluations.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_first_the_last_and_every_tenth_version_are_evaluated(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda task: scored(task, [1.0]))
    for version in (0, 0, 1, 9, 10, 11, 22, 25):
        asyncio.run(run.live(version))
    assert [line["version"] for line in run.lines] == [0, 10, 22, 25], "20 was never live"
    assert run.num_ended == 4


def test_what_was_evaluated_before_a_resume_is_not_evaluated_again(tmp_path: Path) -> None:
    asyncio.run(Run(tmp_path, lambda task: scored(task, [1.0])).live(10))
    again = Run(tmp_path, lambda task: scored(task, [1.0]))
    for version in (10, 11):
        asyncio.run(again.live(version))
    assert again.asked == []


@pytest.mark.parametrize("num_tasks", [1, 4, 9])
def test_every_task_counts_once_however_many_fit_at_once(num_tasks: int, tmp_path: Path) -> None:
    run = Run(tmp_path, lambda task: scored(task, [float(task.number % 2)]), num_tasks)
    asyncio.run(run.live(0))
    assert sorted(run.asked) == list(range(num_tasks))
    assert run.lines[0]["accuracy"] == pytest.approx(num_tasks // 2 / num_tasks)
    rollouts = (tmp_path / "evaluations/out-000000.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in rollouts] == list(range(num_tasks))


def test_a_slow_evaluation_is_said_once_not_by_its_tasks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path / "run", lambda task: scored(task, [1.0]), num_tasks=6, delay_s=0.25)
    run.evaluations._scoring._waiting._warn_s = 0.2
    with caplog.at_level(logging.WARNING, "asyncrl.orchestrator.waiting"):
        asyncio.run(run.live(0))
    assert len(run.lines) == 1
    assert caplog.messages[0].startswith("still waiting for generators: 6 tasks of evaluation out, for ")
    # Of the whole at each doubling of its age, of no task.
    assert len(caplog.messages) <= 3
    assert all("generators: 6 tasks of evaluation out" in message for message in caplog.messages)


def test_failed_rollouts_are_no_zeros_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewards = {0: [1.0, None], 1: [None, None], 2: [0.0, 0.0], 3: [1.0, 1.0]}
    run = Run(tmp_path, lambda task: scored(task, rewards[task.number]), 4, n=2)
    asyncio.run(run.live(0))
    (line,) = run.lines
    assert line["accuracy"] == pytest.approx(2 / 3), "the mean over the tasks that have a score"
    assert (line["failed"], line["failed_share"]) == (3, 3 / 8)
    assert (line["truncated_share"], line["tokens_mean"]) == (1.0, 4.0), "of those that were scored"
    assert line["pass_at"] == {"1": 0.5, "2": 0.5}
    assert "3 of 8 rollouts failed and are not in its score; the first: KeyError: gold" in caplog.text


def test_nothing_scored_is_no_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asyncio.run(Run(tmp_path, lambda task: scored(task, [None])).live(0))
    assert "out of version 0: no rollout of 5 tasks was scored" in caplog.text


def test_tokens_of_other_versions_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path, lambda task: scored(task, [1.0], version=10 + (task.number == 4)))
    asyncio.run(run.live(10))
    assert run.lines[0]["other_versions_share"] == pytest.approx(1 / 5)
    assert "20% of its tokens are of other versions" in caplog.text
    assert run.figures[0]["eval/out/version"] == 10


def test_a_score_is_called_by_the_version_that_made_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path, lambda task: scored(task, [1.0], version=11))
    asyncio.run(run.live(10))
    assert [line["version"] for line in run.lines] == [11]
    assert "of version 10 is one of version 11" in caplog.text


def test_checkpoints_wait_for_scores_that_are_still_to_come(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda task: scored(task, [1.0]), delay_s=0.05)
    awaited = run.evaluations.awaited

    async def at_once() -> None:
        evaluating = [asyncio.ensure_future(one) for one in run.evaluations.live(10)]
        run.version = 10
        assert [version for version in (8, 10, 12) if awaited("eval/out/accuracy", version)] == [10, 12]
        assert not run.evaluations.due(20), "the one before has not ended"
        await asyncio.gather(*evaluating)

    asyncio.run(at_once())
    assert [version for version in (8, 10, 12) if awaited("eval/out/accuracy", version)] == [12]
    assert run.evaluations.due(20)


def test_rewards_that_no_float_adds_up_end_no_run(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda task: scored(task, [1e308]))
    asyncio.run(run.live(0))
    assert run.lines[0]["reward"] is None


async def held_for(run: Run, step_done: bool) -> float:
    """Seconds that the push of version 11 waits for the evaluation of version 10."""
    began = asyncio.get_running_loop().time()
    evaluating = [asyncio.ensure_future(one) for one in run.evaluations.live(10)]
    pushing = asyncio.ensure_future(run.evaluations.before_push(11))
    await asyncio.sleep(0.02)
    assert not pushing.done()
    run.evaluations.step_done(10)  # the step that made version 11: it is over before the push is asked for
    await asyncio.sleep(0.02)
    assert not pushing.done()
    if step_done:
        run.evaluations.step_done(11)
    await pushing
    held_s = asyncio.get_running_loop().time() - began
    await asyncio.gather(*evaluating)
    return held_s


def test_a_push_waits_for_an_evaluation_but_no_longer_than_a_step(tmp_path: Path) -> None:
    slow = {"answer": lambda task: scored(task, [1.0], 10), "num_tasks": 4, "delay_s": 0.15}
    assert asyncio.run(held_for(Run(tmp_path / "a", **slow), step_done=False)) >= 0.15
    run = Run(tmp_path / "b", **slow)
    assert asyncio.run(held_for(run, step_done=True)) < 0.15
    assert run.lines[0]["push_held_s"] == 0.0, "it was released before the evaluation was done"


def test_no_evaluation_holds_no_push(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda task: scored(task, [1.0]))
    asyncio.run(asyncio.wait_for(run.evaluations.before_push(1), 1.0))


def test_a_lost_generators_tasks_go_to_another(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda task: scored(task, [1.0]))

    async def dies(name: str, task: Task) -> TaskScores:
        raise RayActorError

    run.serving = {"dead": SimpleNamespace(evaluate=SimpleNamespace(remote=dies)), **run.serving}
    run.evaluations._scoring._lost = lambda name, handle, error: run.serving.pop(name, None)
    asyncio.run(run.live(0))
    assert run.lines[0]["tasks"] == 5
    assert run.lines[0]["failed"] == 0
    assert list(run.serving) == ["a"]


def test_an_evaluation_that_nobody_can_do_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path, lambda task: scored(task, [1.0]))
    run.serving = {}
    deadlines = run.recipe.deadlines.model_copy(update={"start_s": 0.3})
    run.evaluations._scoring._recipe = run.recipe.model_copy(update={"deadlines": deadlines})
    asyncio.run(run.live(0))
    assert "evaluation out of version 0 is given up" in caplog.text
    assert not run.evaluations.running
    assert run.lines == []


CURVE = {0: 0.2, 10: 0.5, 20: 0.5, 30: 0.4}


@pytest.mark.parametrize(
    ("keys", "scores", "ends"),
    [
        ({"patience": 2}, {0: 0.2, 10: 0.5, 20: 0.5}, False),
        ({"patience": 2}, CURVE, True),
        ({"patience": 3}, CURVE, False),
        ({"target": 0.5}, {0: 0.2, 10: 0.5}, True),
        ({"target": 0.5}, CURVE, False),
        ({"target": 0.9, "patience": 2}, CURVE, True),
        ({"patience": 1}, {}, False),
    ],
)
def test_a_run_ends_when_it_has_learnt_enough(keys: Any, scores: dict[int, float], ends: bool) -> None:
    why = reason(EarlyStopRecipe(metric="eval/out/accuracy", **keys), scores)
    assert bool(why) == ends


def test_an_evaluation_may_end_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda task: scored(task, [1.0]))
    wish = EarlyStopRecipe(metric="eval/out/accuracy", target=0.9)
    run.evaluations._recipe = run.recipe.model_copy(update={"early_stop": wish})
    asyncio.run(run.live(10))
    assert run.stops == ["early_stop: eval/out/accuracy is 1 at version 10, the target is 0.9"]
