"""Published objectives by name: what a preset sets, and what wins over it."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest

from asyncrl.errors import UserError
from asyncrl.recipe.algorithm import PRESETS, AlgorithmRecipe
from asyncrl.recipe.check_algorithm import check_algorithm
from asyncrl.recipe.load import dump, load
from asyncrl.registry import LOSSES

BASE = "model: m\ndata: {path: d.jsonl}\nreward: r:f\nmax_steps: 1\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(algorithm: str, name: str = "r.yaml") -> Path:
        (tmp_path / name).write_text(f"{BASE}algorithm: {algorithm}\n")
        return Path(name)

    return write


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_recipe_that_passes_the_checks(write, name: str) -> None:
    recipe = load(write(f"{{preset: {name}}}"))
    resolved = {"proximal": "recompute" if name in ("decoupled_ppo", "icepop") else "behaviour"} | PRESETS[name]
    assert recipe.algorithm.model_dump() == {**AlgorithmRecipe().model_dump(), **resolved, "preset": name}
    check_algorithm(recipe, provides_logprobs=True)


@pytest.mark.parametrize(
    ("algorithm", "proximal"),
    [
        ("{}", "behaviour"),
        ("{correction: tis}", "recompute"),
        ("{preset: dapo, correction: tis}", "recompute"),
        ("{preset: dapo}", "behaviour"),
        ("{proximal: recompute}", "recompute"),
        ("{preset: grpo_tis}", "recompute"),
    ],
)
def test_the_ratio_is_to_the_policy_that_sampled_unless_a_correction_does_that(
    write, algorithm: str, proximal: str
) -> None:
    """What stands staleness best is the default; the resolved recipe says which it is."""
    assert load(write(algorithm)).algorithm.proximal == proximal


def test_the_simulated_engine_has_no_policy_to_compare_with(write) -> None:
    assert load(write("{}"), ["rollout.engine=simulated"]).algorithm.proximal == "recompute"


def test_what_the_recipe_says_of_a_loss_is_what_its_signature_asks_for() -> None:
    for name, entry in LOSSES.items():
        takes = signature(entry.load()).parameters
        assert entry.reference == ("ref_logprobs" in takes or "log_z" in takes), name
        assert entry.pairs == ("partner" in takes), name
        assert entry.covariances == bool({"cov_band", "cov_top"} & set(takes)), name


def test_keys_beside_a_preset_and_in_later_layers_win(write) -> None:
    recipe = load(write("{preset: dapo, clip_high: 0.3}"), ["algorithm.clip_low=0.1"])
    assert (recipe.algorithm.clip_low, recipe.algorithm.clip_high) == (0.1, 0.3)
    assert recipe.algorithm.filter_equal_rewards


def test_a_preset_leaves_nothing_of_the_layers_below(write) -> None:
    """Or `algorithm.preset=m2po` on top of a recipe with correction tis would be neither."""
    recipe = load(write("{advantage: rloo, loss: ppo, correction: tis}"), ["algorithm.preset=m2po"])
    assert recipe.algorithm.model_dump() == {**AlgorithmRecipe().model_dump(), **PRESETS["m2po"], "preset": "m2po"}


def test_a_resolved_recipe_is_read_back_the_same_and_takes_another_preset(write, tmp_path: Path) -> None:
    recipe = load(write("{preset: gspo, clip_low: 0.1}"))
    (tmp_path / "resolved.yaml").write_text(dump(recipe))
    assert load(Path("resolved.yaml")) == recipe
    assert load(Path("resolved.yaml"), ["algorithm.preset=cispo"]).algorithm.loss == "cispo"


def test_an_unknown_preset_names_the_nearest(write) -> None:
    with pytest.raises(UserError, match=r"r\.yaml: algorithm\.preset dappo is not one of .*; did you mean dapo\?"):
        load(write("{preset: dappo}"))
