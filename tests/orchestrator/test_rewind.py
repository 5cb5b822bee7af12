"""A resume from an older checkpoint: what was generated after it is trained again at its own step, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_interleavings import check, recipe_of
from world import Plan, World

from asyncrl.buffer.records import groups
from asyncrl.control.controller import Controller
from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.trajectory import decode

Batches = list[list[Any]]
"""Step and keys of the groups of each batch in the weights."""


def recipe() -> Recipe:
    return recipe_of(max_steps=10, checkpoint={"every_steps": 5}, journal={"keep": "all"})


def run(folder: Path) -> Batches:
    """To its end; what its last weights have been trained on."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World(recipe(), folder, Plan(seed=3), monkeypatch)
        check(world, world.live())
    trained: Batches = json.loads((folder / "checkpoints/step_000010/trainer/rank_0.json").read_text())
    return trained


@pytest.fixture
def rewound(tmp_path: Path) -> tuple[Path, Batches]:
    """A run of 10 steps whose checkpoint of step 10 is gone, and what it was trained on."""
    trained = run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step_000010")
    return tmp_path / "run", trained


def test_each_step_is_trained_again_with_its_own_batch_and_nothing_is_generated(
    rewound: tuple[Path, Batches],
) -> None:
    run_dir, trained = rewound
    before = [record.payload for record in groups(run_dir / "journal")]
    assert max(decode(payload).version_range[1] for payload in before) > 5, "there are newer ones than the checkpoint"
    assert run(run_dir) == trained
    assert [record.payload for record in groups(run_dir / "journal")] == before


def test_without_the_journal_nothing_newer_than_the_checkpoint_is_left(rewound: tuple[Path, Batches]) -> None:
    run_dir, trained = rewound
    (run_dir / "journal").rename(run_dir / "away")
    control = json.loads((run_dir / "checkpoints/step_000005/control.json").read_text())
    again = run(run_dir)
    assert again[:5] == trained[:5]
    new = {(group.task, group.attempt): group for r in groups(run_dir / "journal") for group in [decode(r.payload)]}
    # `World` has every trained version checked against its step.
    assert {tuple(key) for _, keys in again[5:] for key in keys} <= new.keys()
    assert min(group.version_range[0] for group in new.values()) == 5
    assert Controller.restore(control["controller"]).ready(), "some were ready, and are generated anew"


def test_groups_of_which_no_record_is_left_are_refused(rewound: tuple[Path, Batches]) -> None:
    run_dir, _ = rewound
    for path in (run_dir / "journal").glob("control_*"):
        path.unlink()
    with pytest.raises(UserError, match=r"journal has groups and no record of .* to go on from checkpoint 5"):
        run(run_dir)
