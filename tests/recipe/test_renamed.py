"""Keys of earlier versions, in recipes that people wrote and in those that runs have stored."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from asyncrl.errors import UserError
from asyncrl.recipe.load import control_settings, dump, load

TINY = "model: random:tiny-llama\ndata: {path: d.jsonl}\nreward: r:f\nmax_steps: 1\nmax_staleness: 2\n"
OLD = (
    TINY + "over_age: wait\nbudgets: {restarts_in_a_row: 7}\npolicy: stale_k\n"
    "selection_window: 1\nbackup_groups: 0\nweights: {push_lag: 1, dtype: float32}\n"
)


def written(folder: Path, text: str) -> Path:
    path = folder / "old.yaml"
    path.write_text(text)
    return path


def test_an_old_recipe_means_the_same_and_each_old_name_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = load(written(tmp_path, OLD), ["rollout.top_p=1", "rollout.top_k=0"])
    settings = control_settings(recipe)
    assert (settings.policy, settings.push_lag, recipe.weights.dtype) == ("stale_k", 1, "float32")
    assert (recipe.on_stale, recipe.budgets.max_consecutive_restarts) == ("wait", 7)
    said = [record.message.partition(": ")[2] for record in caplog.records]
    assert [line.partition(" now, ")[0] for line in said] == [
        "over_age is called on_stale",
        "budgets.restarts_in_a_row is called budgets.max_consecutive_restarts",
        "selection_window is called experimental.selection_window",
        "backup_groups is called experimental.backup_groups",
        "weights.push_lag is called experimental.push_lag",
        "policy is called experimental.policy",
    ]


def test_a_stored_recipe_is_read_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = OLD + "rollout: {top_p: 1.0, top_k: 0}\n"
    with caplog.at_level(logging.WARNING):
        recipe = load(tmp_path / "recipe.yaml", text=stored)
    assert recipe.experimental.policy == "stale_k"
    assert not caplog.records
    assert load(tmp_path / "recipe.yaml", text=dump(recipe)).experimental == recipe.experimental


def test_arguments_have_the_last_word(tmp_path: Path) -> None:
    path = written(tmp_path, OLD)
    assert control_settings(load(path, ["policy=bounded"])).policy == "bounded"
    assert (
        control_settings(load(path, ["policy=one_step", "max_staleness=1", "weights.push_lag=1"])).policy == "one_step"
    )
    assert control_settings(load(path, ["policy=bounded", "experimental.push_lag=2"])).push_lag == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("backup_groups=-1", "command line: experimental.backup_groups must be at least 0, got -1"),
        ("rollout.top_p=0.9", "command line: rollout.top_p cuts the sampled distribution"),
        ("rollout.top_k=5", "command line: rollout.top_k cuts the sampled distribution"),
    ],
)
def test_a_wrong_value_of_an_old_key_is_refused(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        load(written(tmp_path, TINY), [override])
    assert str(raised.value).startswith(said)
