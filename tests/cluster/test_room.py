"""Whether this machine takes a recipe: said before anything is imported or started."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncrl import local_gpus
from asyncrl.cli import main
from asyncrl.cluster import room
from asyncrl.errors import UserError
from asyncrl.recipe.load import load

TINY = Path(__file__).parents[2] / "recipes/tiny.yaml"
SHARES = ["rollout.gpus_per_replica=0.4", "trainer.gpus_per_rank=0.6"]


def with_gpus(monkeypatch: pytest.MonkeyPatch, number: int | None) -> None:
    gpus = None if number is None else [local_gpus.LocalGpu("H100", 80.0)] * number
    monkeypatch.setattr(local_gpus, "listed", lambda: gpus)
    for name in room._ELSEWHERE:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("keys", "number", "said"),
    [
        (SHARES, 0, r"asks for 1 GPU \(1 trainer rank x 0.6 \+ 1 generator x 0.4\), this machine has none; say "
         r"rollout.gpus_per_replica=0 trainer.gpus_per_rank=0 to run on its CPUs, or name a cluster in ray_address"),
        (["trainer.gpus_per_rank=1"], 0, "say trainer.gpus_per_rank=0 to run on its CPUs"),
        (["trainer.ranks=4", "trainer.gpus_per_rank=1"], 3, "this machine has 3: no room for 1 trainer rank x 1"),
    ],
)  # fmt: skip
def test_a_machine_that_is_too_small(monkeypatch: pytest.MonkeyPatch, keys: list[str], number: int, said: str) -> None:
    with_gpus(monkeypatch, number)
    recipe = load(TINY, keys)
    with pytest.raises(UserError, match=said):
        room.require_gpus(recipe)
    room.require_gpus(recipe.model_copy(update={"ray_address": "auto"}))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    room.require_gpus(recipe)


@pytest.mark.parametrize(("keys", "number"), [(SHARES, 1), (SHARES, None), ([], 0)])
def test_a_machine_that_is_large_enough_or_cannot_be_counted(
    monkeypatch: pytest.MonkeyPatch, keys: list[str], number: int | None
) -> None:
    with_gpus(monkeypatch, number)
    room.require_gpus(load(TINY, keys))


def test_train_refuses_at_once_and_a_dry_run_only_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with_gpus(monkeypatch, 0)
    assert main(["train", str(TINY), *SHARES]) == 2
    out, err = capsys.readouterr()
    assert "importing" not in out
    assert "this machine has none; say rollout.gpus_per_replica=0 trainer.gpus_per_rank=0 to run on its CPUs" in err
    assert main(["train", str(TINY), *SHARES, "--dry-run"]) == 0
    assert "\ncaution    here it would not start: the recipe asks for 1 GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [True, False])
def test_gpus_that_no_program_lists_are_not_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    sign = tmp_path / "kfd"
    if there:
        sign.touch()
    monkeypatch.setattr(local_gpus, "_QUERY", ("no-nvidia-smi-here",))
    monkeypatch.setattr(local_gpus, "_DRIVERS", (str(sign),))
    assert local_gpus.listed() == (None if there else [])
