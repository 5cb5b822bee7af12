"""A recipe holds no secret, and takes none from the environment: it is stored, shown and tracked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from asyncrl.cli import main
from asyncrl.errors import UserError
from asyncrl.recipe import secret
from asyncrl.recipe.check import check
from asyncrl.recipe.load import dump, load
from asyncrl.recipe.stored import load_stored

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SECRET = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "HF_TOKEN", "PGPASSWORD", "ANYTHING", "SLURM_JWT", "ASYNCRL_HUB_TOKEN", "asyncrl_x", ""]
)
@pytest.mark.parametrize("text", ["${oc.env:NAME}", "a${oc.env:NAME,none}", "${oc.decode:${oc.env:NAME}}"])
def test_a_recipe_reads_no_secret(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.chdir(ROOT)
    recipe = tmp_path / "theirs.yaml"
    recipe.write_text(f"base: {ROOT}/recipes/tiny.yaml\nrewards:\n  kwargs:\n    note: {text.replace('NAME', name)}\n")
    assert main(["train", str(recipe), "--dry-run"]) == 2
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err
    if name:
        assert f"theirs.yaml: rewards.kwargs.note: ${{oc.env:{name}}} is not read" in said.err


def test_a_preset_is_no_way_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked up before the layers are merged."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with pytest.raises(UserError, match=r"algorithm\.preset: \$\{oc\.env:HF_TOKEN\} is not read"):
        load(ROOT / "recipes/tiny.yaml", ["algorithm.preset=${oc.env:HF_TOKEN}"])


def test_where_a_job_runs_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("ASYNCRL_DATA", "/data")
    keys = ["run_dir=/runs/${oc.env:SLURM_JOB_ID}", "data.path=${oc.env:ASYNCRL_DATA}/x.jsonl"]
    recipe = load(ROOT / "recipes/tiny.yaml", [*keys, "track.project=${oc.env:SLURM_JOB_NAME,none}"])
    assert (recipe.run_dir, recipe.data.path, recipe.track.project) == ("/runs/42", "/data/x.jsonl", "none")


def test_others_who_use_omegaconf_here_are_not_in_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with pytest.raises(UserError):
        load(ROOT / "recipes/tiny.yaml", ["run_dir=${oc.env:HF_TOKEN}"])
    assert OmegaConf.create({"a": "${oc.env:HF_TOKEN}"}).a == SECRET


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ("rewards.kwargs={api_key: %s}", "rewards.kwargs.api_key"),
        ("rewards.kwargs={judge: {openai-api-key: %s}}", "rewards.kwargs.judge.openai-api-key"),
        ("data.options={token: %s}", "data.options.token"),
        ("data.options={storage_options: {secret: %s}}", "data.options.storage_options.secret"),
        ("rollout.engine_args={hf_token: %s}", "rollout.engine_args.hf_token"),
        ("rewards.kwargs={a: [x, 'Bearer sk-%s']}", "rewards.kwargs.a"),
        ("rewards.kwargs={url: 'https://me:%s@host/v1'}", "rewards.kwargs.url"),
        ("track.project=hf_%s", "track.project"),
    ],
)
def test_a_literal_secret_is_refused_and_not_repeated(keys: str, named: str) -> None:
    recipe = load(ROOT / "recipes/tiny.yaml", [keys % SECRET])
    with pytest.raises(UserError, match="looks like a secret") as error:
        check(recipe, ROOT)
    assert str(error.value).startswith(f"{named} ")
    assert SECRET not in str(error.value)


def test_an_older_run_that_has_one_is_read_and_goes_on_without_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        dump(load(ROOT / "recipes/tiny.yaml", [f"rewards.kwargs={{api_key: {SECRET}}}"]))
    )
    recipe, stored = load_stored(tmp_path, ["rewards.kwargs.api_key=null"], trust=False)
    assert secret.found(stored.model_dump()) == "rewards.kwargs.api_key"
    assert secret.found(recipe.model_dump()) is None


@pytest.mark.parametrize(
    "keys",
    [
        "rewards.kwargs={token: '<|endoftext|>', max_tokens: 1000000000000, api_key: null}",
        "rewards.kwargs={credentials: /home/me/credentials.json, password: wrong, eos_token: '<|im_end|>'}",
        "data.chat_template_kwargs={secret: true}",
        "data.system='the password is a secret, the token is sk-1 and eyJ'",
        "rollout.stop=['</answer>', 'token']",
    ],
)
def test_words_that_only_sound_like_it_are_none(keys: str) -> None:
    assert secret.found(load(ROOT / "recipes/tiny.yaml", [keys]).model_dump()) is None


def test_one_that_an_older_run_has_is_not_shown(tmp_path: Path) -> None:
    import stranger

    run_dir = stranger.write_run(tmp_path / "run")
    with (run_dir / "recipe.yaml").open("a") as file:
        file.write(
            f"rewards:\n  kwargs:\n    api_key: '{SECRET}'\n    said: [sk-{SECRET}, plain]\n    eos_token: <s>\n"
        )
    assert main(["report", str(run_dir)]) == 0
    page = (run_dir / "report.html").read_text()
    assert SECRET not in page
    for shown in ("    api_key: …\n", "said: […, plain]", "eos_token: &lt;s&gt;"):
        assert shown in page


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_shipped_recipe_is_refused(path: Path) -> None:
    assert secret.found(load(path).model_dump()) is None


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), st.lists))
def test_short_texts_under_no_name_are_none(value: object) -> None:
    assert secret.found({"a": value}) is None
